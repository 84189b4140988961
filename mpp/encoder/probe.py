"""What a timm architecture is: tokens, feature and layers, read from a model on the meta device."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from functools import cached_property
from typing import Any

import timm
import torch
from timm.models import group_parameters, is_model, list_models
from torch import Tensor, nn

from mpp.encoder.backbone import Backbone, Layout
from mpp.encoder.encoder import norm_argument
from mpp.settings import SettingError

SETTINGS = {"global_pool": "pool", "drop_path_rate": "drop_path", "img_size": "image_size"}
"""Settings by timm's names for them."""
POOLING = ("global_pool", "fc_norm", "use_fc_norm")
"""timm's arguments of the pooling; all that a probe reports is the same without them."""


def check_name(name: str) -> None:
    """Refuse a name that timm does not know, by a ValueError with similar names."""
    if not is_model(name):
        close = similar_names(name, list_models())
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(f"timm {timm.__version__} has no model {name!r}{hint}")


def native_size(name: str) -> int:
    """Pixels a side of the images that timm's architecture is made for."""
    config = timm.get_pretrained_cfg(name)
    return config.input_size[-1] if config is not None else 224


def similar_names(name: str, known: list[str]) -> list[str]:
    """Up to three known names that begin similarly to `name`; of equals `patch16_224` first, then the shortest."""

    def similarity(candidate: str) -> tuple[float, bool, float]:
        beginnings = (candidate[: len(name) + more] for more in (-1, 0, 1))
        ratios = (difflib.SequenceMatcher(None, name, each, autojunk=False).ratio() for each in beginnings)
        return max(ratios), candidate.endswith("patch16_224"), -len(candidate)

    rough = [each for each in known if each[:2] == name[:2]] or known
    return [each for each in sorted(rough, key=similarity, reverse=True)[:3] if similarity(each)[0] > 0.6]


def skeleton(name: str, arguments: dict[str, Any], num_classes: int = 0) -> Any:
    """timm's model on the meta device. Raises SettingError if timm does not take the arguments."""
    try:
        with torch.device("meta"):
            return timm.create_model(name, pretrained=False, num_classes=num_classes, **arguments)
    except Exception as error:  # timm's models raise anything at arguments that they do not take
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"
        named = (setting for argument, setting in SETTINGS.items() if argument in arguments and argument in str(error))
        message = f"timm cannot build {name} with {given}: {error}"
        raise SettingError({next(named, "arguments"): message}) from error


class Probe:
    """A model on the meta device, and what it is. `probe` returns cached ones.

    Attributes:
        name: timm's name of the architecture.
        image_size: pixels a side.
        model: timm's model, pooled in its own way; shared, so never changed.
        takes_size: whether timm takes the image size as an argument.
        layout: the layout of its tokens; None if it does not have one token a patch.
        refusal: why there is no layout.
    """

    def __init__(self, name: str, arguments: dict[str, Any], image_size: int) -> None:
        self.name, self.image_size = name, image_size
        self.model, self.takes_size = _built(name, arguments, image_size)
        self.layout: Layout | None = None
        self.refusal = ""
        try:
            self.layout = self._layout()
        except ValueError as error:
            self.refusal = str(error)

    @property
    def embeds_patches(self) -> bool:
        """Whether its first layer is a patch embedding, whatever the others are."""
        return isinstance(getattr(self.model, "patch_embed", None), nn.Module)

    @property
    def patch_size(self) -> int:
        """Pixels a side of a patch, as the patch embedding has it at any image size."""
        assert self.layout is not None
        ratio = getattr(self.model.patch_embed, "feat_ratio", None)
        return int(ratio()) if ratio is not None else self.layout.patch_size

    @cached_property
    def width(self) -> int:
        """The length of the feature of an image. Raises ValueError if the model does not give one feature an image."""
        if self.layout is not None:
            return self.layout.width
        feature = self._output(lambda x: self.model.forward_head(self.model.forward_features(x), pre_logits=True))
        if not isinstance(feature, Tensor) or feature.ndim != 2:
            raise self._error(f"its feature comes out as {_shape(feature)}, not as (batch, width)")
        return feature.shape[1]

    def pooling(self, pool: str | None, arguments: dict[str, Any]) -> dict[str, Any]:
        """timm's arguments for a pooling. Raises SettingError if timm does not offer it for this model.

        None takes the class token where there is one, else `avg`; without patches it takes timm's own pooling. Tokens
        are pooled after the final norm, unless the architecture or its other `arguments` put the norm elsewhere.
        """
        has_token = getattr(self.model, "cls_token", None) is not None
        if pool == "token" and self.layout is not None and not has_token:
            raise SettingError({"pool": f"pool token does not fit {self.name}, which has no class token; use pool avg"})
        if pool is not None:
            try:
                deepcopy(self.model).reset_classifier(0, global_pool=pool)
            except Exception as error:  # timm's models raise anything at a pooling that they do not know
                message = f"timm cannot build {self.name} with global_pool={pool!r}: {error}; try another pool"
                raise SettingError({"pool": message}) from error
        if self.layout is None:
            return {} if pool is None else {"global_pool": pool}
        pool = pool or ("token" if has_token else "avg")
        argument = norm_argument(self.model)
        if argument is None or argument.default is not None or argument.name in arguments:
            return {"global_pool": pool}
        return {"global_pool": pool, argument.name: False}

    def _layout(self) -> Layout:
        """The layout of the tokens. Raises ValueError if there is not one token a patch from first to last layer."""
        if not self.embeds_patches or not hasattr(self.model, "forward_features"):
            raise self._error("it has no patch embedding; use a Vision Transformer, e.g. vit_tiny_patch16_224")
        embeddings: list[Any] = []
        handle = self.model.patch_embed.register_forward_hook(lambda module, args, out: embeddings.append(out))
        try:
            tokens = self._output(self.model.forward_features)
        finally:
            handle.remove()
        if not embeddings or not isinstance(embeddings[0], Tensor):
            raise self._error("its patch embedding does not give one tensor of patch embeddings")
        if not isinstance(tokens, Tensor) or tokens.ndim != 3 or embeddings[0].ndim not in (3, 4):
            raise self._error(f"its tokens come out as {_shape(tokens)}, not as (batch, tokens, width)")
        prefix, width = getattr(self.model, "num_prefix_tokens", 0), embeddings[0].shape[-1]
        num_patches = embeddings[0][0].numel() // width
        if tokens.shape[1] != prefix + num_patches or tokens.shape[2] != width:
            raise self._error(
                f"{num_patches} patch embeddings of width {width} go in, but {tokens.shape[1] - prefix} of "
                f"width {tokens.shape[2]} come out: its token grid changes on the way, or patches are dropped"
            )
        grid = round(num_patches**0.5)
        if grid**2 != num_patches:
            raise self._error(f"its {num_patches} patches do not form a square grid")
        return Layout(self.image_size, grid, prefix, width)

    def _output(self, forward: Callable[[Tensor], Any]) -> Any:
        """What `forward` makes of two images, in training mode: nothing is dropped."""
        try:
            with torch.no_grad():
                return forward(torch.zeros(2, 3, self.image_size, self.image_size, device="meta"))
        except Exception as error:  # timm's models raise anything at sizes that they do not take
            raise self._error(f"images of {self.image_size} px do not go through it: {error}") from error

    def _error(self, reason: str) -> ValueError:
        return ValueError(f"{self.name} cannot be used here: {reason}")


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


_PROBES: dict[tuple[str, str, int], Probe] = {}


def probe(name: str, arguments: dict[str, Any] | None = None, image_size: int | None = None) -> Probe:
    """The cached probe of an architecture with these arguments, by default at its own image size.

    Raises:
        SettingError: if timm does not take the arguments.
    """
    size = image_size or native_size(name)
    arguments = {key: value for key, value in (arguments or {}).items() if key not in (*POOLING, "img_size")}
    key = name, repr(sorted(arguments.items())), size
    if key not in _PROBES:
        _PROBES[key] = Probe(name, arguments, size)
    return _PROBES[key]


def _built(name: str, arguments: dict[str, Any], image_size: int) -> tuple[Any, bool]:
    """The model, and whether it takes the image size: a model whose weights depend on it does, most others do not.

    Some are built without pooling: timm refuses to build them for the pooling of a token that they do not have.
    """
    sized: dict[str, Any] = {**arguments, "img_size": image_size}
    for chosen in (sized, sized | {"global_pool": ""}):
        with suppress(SettingError):
            return skeleton(name, chosen), True
    return skeleton(name, arguments), False


def has_patches(name: str, arguments: dict[str, Any]) -> bool:
    """Whether this architecture has one token a patch from first to last layer, with these arguments or without.

    Arguments that break it are a mistake to report.
    """
    for chosen in (arguments, {}):
        with suppress(SettingError):
            if probe(name, chosen).layout is not None:
                return True
    return False


def layers_of(backbone: Backbone) -> tuple[dict[str, int], int]:
    """The layer of each parameter by its name, and the number of the head, for layer-wise learning rates.

    timm's own count: 0 is the embedding with positions and tokens, i the i-th block, L + 1 the head. The final norm
    is in the layer of the last block, or after the pooling in that of the head.

    Raises:
        ValueError: if timm does not know the layers of this architecture.
    """
    model = skeleton(backbone.name, backbone.arguments, num_classes=2)
    if not hasattr(model, "group_matcher"):
        raise ValueError(f"timm does not know the layers of {backbone.name}; leave optimizer.layer_decay out")
    numbers: Any = group_parameters(model, model.group_matcher(coarse=False), reverse=True)  # pyright: ignore
    head = max(numbers.values())
    return {name: numbers.get(name, head) for name, _ in backbone.model.named_parameters()}, head

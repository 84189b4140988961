"""What a timm architecture is, asked of one probe: a model without memory for its weights."""

from __future__ import annotations

import difflib
from contextlib import suppress
from copy import deepcopy
from functools import cached_property
from typing import Any

import timm
import torch
from timm.models import is_model, list_models
from torch import Tensor, nn

from mpp.encoder.encoder import Layout, norm_argument
from mpp.settings import SettingError

SETTINGS = {"global_pool": "pool", "drop_path_rate": "drop_path", "img_size": "image_size"}
"""What timm calls some settings."""


def check_name(name: str) -> None:
    """Refuse a name that timm does not know.

    Raises:
        ValueError: with what it may have meant.
    """
    if not is_model(name):
        close = similar_names(name, list_models())
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(f"timm {timm.__version__} has no model {name!r}{hint}")


def native_size(name: str) -> int:
    """Pixels a side of the images that timm's architecture is made for."""
    config = timm.get_pretrained_cfg(name)
    return config.input_size[-1] if config is not None else 224


def similar_names(name: str, known: list[str]) -> list[str]:
    """The three names that `name` was most probably meant to be, the best first.

    What was written may be the beginning of a name: as much of each is compared. Of names that are equally near, those
    of the most similar length come first, and of these the usual `patch16_224`.
    """

    def nearness(candidate: str) -> tuple[float, bool, float]:
        begins = max(
            difflib.SequenceMatcher(None, name, candidate[: len(name) + more], autojunk=False).ratio()
            for more in (-1, 0, 1)
        )
        return begins, candidate.endswith("patch16_224"), -len(candidate)

    rough = [each for each in known if each[:2] == name[:2]] or known
    ranked = sorted(rough, key=nearness, reverse=True)[:3]
    return [each for each in ranked if nearness(each)[0] > 0.6]


def skeleton(name: str, **arguments: Any) -> Any:
    """timm's model on the meta device.

    Raises:
        SettingError: if timm does not take the arguments.
    """
    try:
        with torch.device("meta"):
            return timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    except Exception as error:  # what timm's models raise at arguments they do not like is anything
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"
        named = (setting for argument, setting in SETTINGS.items() if argument in arguments and argument in str(error))
        message = f"timm cannot build {name} with {given}: {error}"
        raise SettingError({next(named, "arguments"): message}) from error


class Probe:
    """A model on the meta device, and what it is. Get one from `probe`, which keeps them.

    Attributes:
        name: timm's name of the architecture.
        image_size: pixels a side.
        model: timm's model, pooled in its own way; shared, so never changed.
        takes_size: whether timm takes the image size as an argument.
        layout: the layout of its tokens; None if it does not have one token a patch.
        refusal: why there is no layout.
    """

    layout: Layout | None

    def __init__(self, name: str, arguments: dict[str, Any], image_size: int) -> None:
        self.name, self.image_size = name, image_size
        self.model, self.takes_size = _built(name, arguments, image_size)
        try:
            self.layout, self.refusal = layout_of(name, self.model, image_size), ""
        except ValueError as error:
            self.layout, self.refusal = None, str(error)

    @property
    def embeds_patches(self) -> bool:
        """Whether it begins with a patch embedding, whatever comes after it."""
        return isinstance(getattr(self.model, "patch_embed", None), nn.Module)

    @property
    def is_hybrid(self) -> bool:
        """Whether patches come out of a convolutional stem."""
        return self.embeds_patches and hasattr(self.model.patch_embed, "backbone")

    @property
    def patch_size(self) -> int:
        """Pixels a side of a patch, as the patch embedding has it at any image size."""
        assert self.layout is not None
        ratio = getattr(self.model.patch_embed, "feat_ratio", None)
        return int(ratio()) if ratio is not None else self.layout.patch_size

    @cached_property
    def width(self) -> int:
        """The length of the feature of an image.

        Raises:
            ValueError: if images of this size do not go through the model, or it does not give one feature an image.
        """
        images = torch.zeros(2, 3, self.image_size, self.image_size, device="meta")
        try:
            with torch.no_grad():
                feature = self.model.forward_head(self.model.forward_features(images), pre_logits=True)
        except Exception as error:  # what timm's models raise at sizes they do not like is anything
            raise ValueError(
                f"{self.name} cannot be used here: images of {self.image_size} px do not go through it: {error}"
            ) from error
        if not isinstance(feature, Tensor) or feature.ndim != 2:
            found = tuple(feature.shape) if isinstance(feature, Tensor) else type(feature).__name__
            raise ValueError(
                f"{self.name} cannot be used here: its feature comes out as {found}, not as (batch, width)"
            )
        return feature.shape[1]

    def check_pool(self, pool: str) -> None:
        """Refuse a pooling that timm does not offer for this model.

        Raises:
            SettingError: with timm's reason.
        """
        if pool == "token" and self.layout is not None and getattr(self.model, "cls_token", None) is None:
            raise SettingError({"pool": f"pool token does not fit {self.name}, which has no class token; use pool avg"})
        try:
            deepcopy(self.model).reset_classifier(0, global_pool=pool)
        except Exception as error:  # what timm's models raise at a pooling they do not know is anything
            message = f"timm cannot build {self.name} with global_pool={pool!r}: {error}; try another pool"
            raise SettingError({"pool": message}) from error

    def pooling(self, pool: str | None, arguments: dict[str, Any]) -> dict[str, Any]:
        """timm's arguments that pool the tokens after the final norm, so that every pooled token is normalised.

        Args:
            pool: `token` or `avg`; None takes the class token where there is one.
            arguments: the others; where these or the architecture place the final norm, it stays there.

        Raises:
            SettingError: if timm does not offer this pooling for this model.
        """
        if pool is not None:
            self.check_pool(pool)
        pool = pool or ("avg" if getattr(self.model, "cls_token", None) is None else "token")
        argument = norm_argument(self.model)
        if argument is None or argument.default is not None or argument.name in arguments:
            return {"global_pool": pool}
        return {"global_pool": pool, argument.name: False}


_PROBES: dict[tuple[str, str, int], Probe] = {}
POOLING = ("global_pool", "fc_norm", "use_fc_norm")
"""timm's arguments that say how tokens are pooled; everything else about an architecture is the same without them."""


def probe(name: str, arguments: dict[str, Any] | None = None, image_size: int | None = None) -> Probe:
    """The one probe of an architecture, these arguments and this size; None takes the architecture's own size.

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

    Some refuse to be built for the pooling of a token that they do not have: these are built without pooling.
    """
    sized: dict[str, Any] = {**arguments, "img_size": image_size}
    for chosen in (sized, sized | {"global_pool": ""}):
        with suppress(SettingError):
            return skeleton(name, **chosen), True
    return skeleton(name, **arguments), False


def has_patches(name: str, arguments: dict[str, Any]) -> bool:
    """Whether this architecture, by itself or with these arguments, has one token a patch from the first layer to
    the last.

    By itself is enough: arguments that break it are a mistake to report, no wish for something without patches.
    """
    for chosen in (arguments, {}):
        try:
            found = probe(name, chosen, chosen.get("img_size"))
        except SettingError:
            continue
        if found.layout is not None:
            return True
    return False


def check_divides(name: str, size: int, patch_size: int) -> None:
    """Refuse a size that is not whole patches.

    Raises:
        SettingError: with the sizes nearby that are.
    """
    if size % patch_size:
        below, above = size // patch_size * patch_size, -(-size // patch_size) * patch_size
        near = f"{below} or {above}" if below else str(above)
        message = f"image_size {size} is not a multiple of the patch size {patch_size} of {name}; use {near}"
        raise SettingError({"image_size": f"{message}, or another patch_size"})


def layout_of(name: str, vit: Any, image_size: int) -> Layout:
    """The layout of the tokens of `vit` (on the meta device).

    Raises:
        ValueError: with the reason, if its patch embedding gives no tensor or its grid changes on the way.
    """
    refusal = f"{name} cannot be used here: "
    embedding = getattr(vit, "patch_embed", None)
    if not isinstance(embedding, nn.Module) or not hasattr(vit, "forward_features"):
        raise ValueError(refusal + "it has no patch embedding; use a Vision Transformer, e.g. vit_tiny_patch16_224")
    seen: list[Any] = []
    handle = embedding.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        with torch.no_grad():  # in training: nothing is dropped
            tokens = vit.forward_features(torch.zeros(2, 3, image_size, image_size, device="meta"))
    except Exception as error:  # what timm's models raise at sizes they do not like is anything
        raise ValueError(refusal + f"images of {image_size} px do not go through it: {error}") from error
    finally:
        handle.remove()
    if not seen or not isinstance(seen[0], Tensor):
        raise ValueError(refusal + "its patch embedding does not give one tensor of patch embeddings")
    embed = seen[0]
    prefix = getattr(vit, "num_prefix_tokens", 0)
    if not isinstance(tokens, Tensor) or tokens.ndim != 3 or embed.ndim not in (3, 4):
        found = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(refusal + f"its tokens come out as {found}, not as (batch, tokens, width)")
    num_patches, width = embed[0].numel() // embed.shape[-1], embed.shape[-1]
    if tokens.shape[1] != prefix + num_patches or tokens.shape[2] != width:
        raise ValueError(
            refusal + f"{num_patches} patch embeddings of width {width} go in, but {tokens.shape[1] - prefix} of "
            f"width {tokens.shape[2]} come out: its token grid changes on the way, or patches are dropped"
        )
    grid = round(num_patches**0.5)
    if grid**2 != num_patches:
        raise ValueError(refusal + f"its {num_patches} patches do not form a square grid")
    return Layout(image_size, grid, prefix, width)

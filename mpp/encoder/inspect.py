"""What a timm architecture is, asked without memory for its weights: sizes, pooling, where its tokens stand."""

from __future__ import annotations

import difflib
from typing import Any

import timm
import torch
from timm.models import is_model, list_models
from torch import Tensor, nn

from mpp.encoder.encoder import Layout
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
    """The model without memory for its weights: enough to ask what it is.

    Raises:
        SettingError: if timm does not take the arguments.
    """
    try:
        with torch.device("meta"):
            return timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    except Exception as error:  # what timm's models raise at arguments they do not like is anything
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"
        named = (setting for argument, setting in SETTINGS.items() if argument in arguments and argument in str(error))
        said = f"timm cannot build {name} with {given}: {error}"
        raise SettingError({next(named, "arguments"): said}) from error


def is_hybrid(name: str) -> bool:
    """Whether patches come out of a convolutional stem."""
    return hasattr(getattr(skeleton(name), "patch_embed", None), "backbone")


def check_divides(name: str, size: int, patch_size: int) -> None:
    """Refuse a size that is not whole patches.

    Raises:
        ValueError: with the sizes nearby that are.
    """
    if size % patch_size:
        below, above = size // patch_size * patch_size, -(-size // patch_size) * patch_size
        near = f"{below} or {above}" if below else str(above)
        said = f"image_size {size} is not a multiple of the patch size {patch_size} of {name}; use {near}"
        raise SettingError({"image_size": f"{said}, or another patch_size"})


def unpooled(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments, and no pooling where the architecture lets one say so: some refuse to be built for the pooling
    of a token that they do not have.
    """
    try:
        skeleton(name, **arguments)
    except ValueError:
        return arguments | {"global_pool": ""}
    return arguments


def pooling(name: str, pool: str | None, arguments: dict[str, Any]) -> dict[str, Any]:
    """timm's arguments for pooling after the final norm, so that every token that is pooled is normalised.

    An architecture that has its norm behind the pooling in any case is left as it is.

    Raises:
        ValueError: if the architecture cannot pool in this way.
    """
    arguments = {key: value for key, value in arguments.items() if key not in ("fc_norm", "use_fc_norm")}
    has_class_token = getattr(skeleton(name, **unpooled(name, arguments)), "cls_token", None) is not None
    if pool is None:
        pool = "token" if has_class_token else "avg"
    elif pool == "token" and not has_class_token:
        raise SettingError({"pool": f"pool token does not fit {name}, which has no class token; use pool avg"})
    if _norm_after_pooling(name, arguments | {"global_pool": ""}):
        return {"global_pool": pool}
    for extra in ({}, {"fc_norm": False}, {"use_fc_norm": False}):
        choice: dict[str, Any] = {"global_pool": pool, **extra}
        if _norm_after_pooling(name, arguments | choice) is False:
            return choice
    said = f"timm's {name} cannot normalise its tokens before pooling with pool {pool}; try another pool"
    raise SettingError({"pool": said})


def _norm_after_pooling(name: str, arguments: dict[str, Any]) -> bool | None:
    """Whether the final norm stands behind the pooling; None if timm does not take these arguments."""
    try:
        vit = skeleton(name, **arguments)
    except ValueError:
        return None
    return not isinstance(getattr(vit, "fc_norm", nn.Identity()), nn.Identity)


def layout_of(name: str, vit: Any, image_size: int | None = None) -> Layout:
    """How the tokens of `vit` (on the meta device) stand.

    Raises:
        ValueError: with the reason, if its patch embedding gives no tensor or its grid changes on the way.
    """
    refusal = f"{name} cannot be used here: "
    size = image_size or vit.pretrained_cfg["input_size"][-1]
    embedding = getattr(vit, "patch_embed", None)
    if not isinstance(embedding, nn.Module) or not hasattr(vit, "forward_features"):
        raise ValueError(refusal + "it has no patch embedding; use a Vision Transformer, e.g. vit_tiny_patch16_224")
    seen: list[Any] = []
    handle = embedding.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        with torch.no_grad():  # in training: nothing is dropped
            tokens = vit.forward_features(torch.zeros(2, 3, size, size, device="meta"))
    except Exception as error:  # what timm's models raise at sizes they do not like is anything
        raise ValueError(refusal + f"images of {size} px do not go through it: {error}") from error
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
    return Layout(size, grid, prefix, width)


def has_patches(name: str, arguments: dict[str, Any]) -> bool:
    """Whether this architecture, by itself or with these arguments, has one token a patch from door to end.

    By itself is enough: arguments that spoil it are a mistake to be named, no wish for something without patches.
    """
    for chosen in (arguments, {}):
        try:
            layout_of(name, skeleton(name, **chosen), chosen.get("img_size"))
        except ValueError:
            continue
        return True
    return False


def without_patches(name: str, size: int, pool: str | None, arguments: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """timm's arguments of a model of this size, and the length of its feature, whatever is inside.

    Raises:
        ValueError: if timm does not take the arguments, or the model not the size.
    """
    if pool is not None:
        arguments = arguments | {"global_pool": pool}
    try:  # a model whose weights depend on the size wants to know it, any other refuses to hear it
        arguments, model = arguments | {"img_size": size}, skeleton(name, **arguments | {"img_size": size})
    except ValueError:
        model = skeleton(name, **arguments)
    images = torch.zeros(2, 3, size, size, device="meta")
    try:
        with torch.no_grad():
            feature = model.forward_head(model.forward_features(images), pre_logits=True)
    except Exception as error:  # what timm's models raise at sizes they do not like is anything
        raise ValueError(f"{name} cannot be used here: images of {size} px do not go through it: {error}") from error
    if not isinstance(feature, Tensor) or feature.ndim != 2:
        found = tuple(feature.shape) if isinstance(feature, Tensor) else type(feature).__name__
        raise ValueError(f"{name} cannot be used here: its feature comes out as {found}, not as (batch, width)")
    return arguments, feature.shape[1]

"""Encoders from a timm name, from a run, or from an exported folder."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.models import is_model, list_models
from torch import Tensor, nn

from mpp.encoder.settings import EncoderSettings
from mpp.encoder.vit import Encoder, Layout

# The ViT paper's: pixels in [−1, 1].
HALF = (0.5, 0.5, 0.5)
SETTINGS_OF_THEIR_OWN = frozenset(
    ("name", "image_size", "img_size", "patch_size", "pool", "global_pool", "mean", "std", "in_chans", "num_classes")
)


def create_encoder(
    name: str,
    *,
    image_size: int | None = None,
    patch_size: int | None = None,
    pool: str | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    **arguments: Any,
) -> Encoder:
    """An encoder with random weights.

    Args:
        name: a timm model with a patch embedding and the same token grid in and out, e.g. `vit_base_patch16_224`.
        image_size: pixels a side; None takes the model's own.
        patch_size: pixels a side of a patch; None takes the model's own.
        pool: `token` or `avg`, how tokens become one feature; None takes the class token where there is one.
        mean, std: of pixels in [0, 1]; None takes the ViT paper's 0.5, which maps them to [−1, 1].
        **arguments: further arguments of the timm model, e.g. `depth=6`.

    Raises:
        ValueError: for an unknown or unsuitable model, or for sizes that do not fit.
    """
    _known(name)
    own = _layout(name, _skeleton(name, **{k: v for k, v in arguments.items() if k != "img_size"}))
    size = image_size or own.image_size
    if patch_size is not None:
        if _is_hybrid(name):
            raise ValueError(
                f"patch_size {patch_size} cannot be set for {name}: its patches come out of a convolutional stem; "
                "leave patch_size out, or choose a plain ViT"
            )
        arguments["patch_size"] = patch_size
    _divides(name, size, patch_size or own.patch_size)
    arguments["img_size"] = size
    arguments |= _pooling(name, pool, arguments)
    layout = _layout(name, _skeleton(name, **arguments), size)
    vit = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    return Encoder(vit, layout, name=name, arguments=arguments, mean=mean or HALF, std=std or HALF)


def load_encoder(
    source: str | Path,
    *,
    image_size: int | None = None,
    patch_size: int | None = None,
    pool: str | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    **arguments: Any,
) -> Encoder:
    """An encoder with weights.

    Args:
        source: a run (its newest export is read), an exported encoder folder, or `timm:NAME` with the pretrained
            weights of that name.
        image_size: pixels a side; None takes the source's own. Position embeddings are resized by timm.
        patch_size: must be the source's own, or None.
        pool, mean, std: None takes the source's own.
        **arguments: further arguments of the timm model.

    Raises:
        ValueError: if there is no such source, or it does not suit.
    """
    origin, name, saved, config = _source(source)
    arguments = saved | arguments
    own = _layout(name, _skeleton(name, **arguments), arguments.get("img_size"))
    if patch_size not in (None, own.patch_size):
        raise ValueError(
            f"patch_size {patch_size} does not fit the weights of {source}, whose patches have "
            f"{own.patch_size} pixels a side; leave patch_size out"
        )
    size = image_size or own.image_size
    _divides(name, size, own.patch_size)
    if size != own.image_size:
        arguments["img_size"] = size
    if pool is not None and pool != arguments.get("global_pool"):
        arguments |= _pooling(name, pool, arguments)
    layout = _layout(name, _skeleton(name, **arguments), size)
    try:
        vit = timm.create_model(origin, pretrained=True, num_classes=0, **arguments)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"the weights of {source} cannot be loaded: {str(error).splitlines()[0]}") from error
    mean, std = mean or tuple(config["mean"]), std or tuple(config["std"])
    return Encoder(vit, layout, name=name, arguments=arguments, mean=mean, std=std)


def build_encoder(settings: EncoderSettings, image_size: int) -> Encoder:
    """The encoder that a recipe asks for, from random weights or from a source.

    Raises:
        ValueError: if it cannot be built, or `arguments` say what a setting of its own says.
    """
    if taken := SETTINGS_OF_THEIR_OWN & set(settings.arguments):
        raise ValueError(
            f"encoder.arguments cannot hold {', '.join(sorted(taken))}: images have 3 channels, the encoder has no "
            "classes, and the rest is set by data.image_size, encoder.name, encoder.patch_size, encoder.pool, "
            "encoder.mean and encoder.std"
        )
    common: dict[str, Any] = {
        "image_size": image_size,
        "patch_size": settings.patch_size,
        "pool": settings.pool,
        "mean": settings.mean,
        "std": settings.std,
        **settings.arguments,
    }
    if settings.source is None:
        return create_encoder(settings.name, **common)
    return load_encoder(settings.source, **common)


def _folder(source: str | Path) -> Path | None:
    """The exported folder that a path stands for: itself, or the `encoder/` of a run; None if it is neither."""
    for folder in (Path(source), Path(source) / "encoder"):
        if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
            return folder
    return None


def _source(source: str | Path) -> tuple[str, str, dict[str, Any], dict[str, Any]]:
    """What timm opens, the architecture's name, its saved arguments, and its mean and std."""
    folder = _folder(source)
    if folder is not None:
        try:
            config = json.loads((folder / "config.json").read_text())
            name, norm = config["architecture"], config["pretrained_cfg"]
            return (
                f"local-dir:{folder}",
                name,
                config.get("model_args", {}),
                {key: norm[key] for key in ("mean", "std")},
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder / 'config.json'} is not timm's description of a model: {error!r}") from error
    if Path(source).exists():
        raise ValueError(
            f"{source} holds no encoder: expected config.json and model.safetensors in it or in its encoder/ folder"
        )
    name = str(source).removeprefix("timm:")
    architecture = name.split(".")[0]
    if not str(source).startswith("timm:") and not is_model(architecture):
        raise ValueError(
            f"encoder source {str(source)!r} does not exist; give a run, an exported encoder folder, "
            "or timm:NAME for timm's pretrained weights"
        )
    _known(architecture)
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = ", ".join(timm.list_pretrained(f"{architecture}.*")) or "none"
        raise ValueError(f"timm has no pretrained weights {name}; for {architecture} there are: {tags}") from error
    if config is None or not config.has_weights:
        raise ValueError(f"timm has no pretrained weights for {name}")
    return name, architecture, {}, config.to_dict()


def _known(name: str) -> None:
    if not is_model(name):
        begin_alike = [known for known in list_models() if known.startswith(name)][:3]
        close = begin_alike or difflib.get_close_matches(name, list_models(), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(f"timm {timm.__version__} has no model {name!r}{hint}")


def _skeleton(name: str, **arguments: Any) -> Any:
    """The model without memory for its weights: enough to ask what it is.

    Raises:
        ValueError: if timm does not take the arguments.
    """
    try:
        with torch.device("meta"):
            return timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    except Exception as error:  # what timm's models raise at arguments they do not like is anything
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"
        raise ValueError(f"timm cannot build {name} with {given}: {error}") from error


def _is_hybrid(name: str) -> bool:
    return hasattr(getattr(_skeleton(name), "patch_embed", None), "backbone")


def _divides(name: str, size: int, patch_size: int) -> None:
    if size % patch_size:
        below, above = size // patch_size * patch_size, -(-size // patch_size) * patch_size
        near = f"{below} or {above}" if below else str(above)
        raise ValueError(
            f"image_size {size} is not a multiple of the patch size {patch_size} of {name}; "
            f"use {near}, or another patch_size"
        )


def _pooling(name: str, pool: str | None, arguments: dict[str, Any]) -> dict[str, Any]:
    """timm's arguments for pooling after the final norm, so that every token that is pooled is normalised.

    An architecture that has its norm behind the pooling in any case is left as it is.
    """
    arguments = {key: value for key, value in arguments.items() if key not in ("fc_norm", "use_fc_norm")}
    has_class_token = getattr(_skeleton(name, **arguments), "cls_token", None) is not None
    if pool is None:
        pool = "token" if has_class_token else "avg"
    elif pool == "token" and not has_class_token:
        raise ValueError(f"pool token does not fit {name}, which has no class token; use pool avg")
    if _norm_after_pooling(name, arguments | {"global_pool": ""}):
        return {"global_pool": pool}
    for extra in ({}, {"fc_norm": False}, {"use_fc_norm": False}):
        choice: dict[str, Any] = {"global_pool": pool, **extra}
        if _norm_after_pooling(name, arguments | choice) is False:
            return choice
    raise ValueError(f"timm's {name} cannot normalise its tokens before pooling with pool {pool}; try another pool")


def _norm_after_pooling(name: str, arguments: dict[str, Any]) -> bool | None:
    """Whether the final norm stands behind the pooling; None if timm does not take these arguments."""
    try:
        vit = _skeleton(name, **arguments)
    except ValueError:
        return None
    return not isinstance(getattr(vit, "fc_norm", nn.Identity()), nn.Identity)


def _layout(name: str, vit: Any, image_size: int | None = None) -> Layout:
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
    with torch.no_grad():
        tokens = vit.forward_features(torch.zeros(2, 3, size, size, device="meta"))  # in training: nothing is dropped
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

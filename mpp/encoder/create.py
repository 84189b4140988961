"""Encoders from a timm name, from a run, or from an exported folder; and networks without patches beside them."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
from safetensors import SafetensorError
from torch import nn

from mpp.data.settings import DataSettings
from mpp.encoder.backbone import Backbone
from mpp.encoder.encoder import Encoder
from mpp.encoder.export import export_encoder
from mpp.encoder.inspect import (
    check_divides,
    check_name,
    has_patches,
    is_hybrid,
    layout_of,
    pooling,
    skeleton,
    unpooled,
    without_patches,
)
from mpp.encoder.pos_embed import Resize, learnt_positions, resize_positions
from mpp.encoder.pretrained import NOT_THE_MODEL_S, architecture_of, open_source
from mpp.encoder.settings import EncoderSettings
from mpp.encoder.weights_file import fill, read_weights, size_of
from mpp.settings import SettingError

# The ViT paper's: pixels in [−1, 1].
HALF = (0.5, 0.5, 0.5)
SETTINGS_OF_THEIR_OWN = frozenset(
    ("name", "source", "image_size", "img_size", "patch_size", "pool", "global_pool", "mean", "std", "resize",
     "in_chans", "revision", "allow_pickle")
)  # fmt: skip


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
    check_name(name)
    if "img_size" in arguments:
        raise SettingError({"image_size": f"give image_size={arguments['img_size']} instead of timm's own img_size"})
    own = layout_of(name, skeleton(name, **unpooled(name, arguments)))
    size = image_size or own.image_size
    if patch_size is not None:
        if is_hybrid(name):
            said = f"patch_size {patch_size} cannot be set for {name}: its patches come out of a convolutional stem"
            raise SettingError({"patch_size": f"{said}; leave patch_size out, or choose a plain ViT"})
        arguments["patch_size"] = patch_size
    check_divides(name, size, patch_size or own.patch_size)
    arguments["img_size"] = size
    arguments |= pooling(name, pool, arguments)
    layout = layout_of(name, skeleton(name, **arguments), size)
    vit = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    return Encoder(vit, layout, name=name, arguments=arguments, mean=mean or HALF, std=std or HALF)


def create_backbone(
    name: str,
    *,
    image_size: int | None = None,
    patch_size: int | None = None,
    pool: str | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    **arguments: Any,
) -> Backbone:
    """A network with random weights, for classification: an `Encoder` where timm's model has patches, else without.

    Args:
        name: any timm model that gives one feature an image, e.g. `vit_base_patch16_224` or `resnet50`.
        image_size, patch_size, pool, mean, std, **arguments: as for `create_encoder`. A network without patches has
            no patch size, and pools in timm's own way unless told otherwise.

    Raises:
        ValueError: for an unknown or unsuitable model, or for sizes that do not fit.
    """
    check_name(name)
    if has_patches(name, arguments):
        return create_encoder(
            name, image_size=image_size, patch_size=patch_size, pool=pool, mean=mean, std=std, **arguments
        )
    _no_patch_size(name, patch_size)
    size = image_size or skeleton(name).pretrained_cfg["input_size"][-1]
    arguments, width = without_patches(name, size, pool, arguments)
    model = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    mean, std = mean or HALF, std or HALF
    return Backbone(model, image_size=size, width=width, name=name, arguments=arguments, mean=mean, std=std)


def load_encoder(
    source: str | Path,
    *,
    image_size: int | None = None,
    patch_size: int | None = None,
    pool: str | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    resize: Resize = "bilinear",
    name: str | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    **arguments: Any,
) -> Backbone:
    """A network with weights: an `Encoder` where it has patches, a plain `Backbone` (e.g. a ResNet) where not.

    Args:
        source: a run (its newest export is read), an exported encoder folder, `USER/NAME` or `USER/NAME@REVISION` on
            the Hugging Face Hub, `timm:NAME` with the pretrained weights of that name, or a file of weights alone.
        image_size: pixels a side; None takes the source's own.
        patch_size: must be the source's own, or None.
        pool, mean, std: None takes the source's own.
        resize: how learnt absolute position embeddings are brought to another image size: `bilinear` with aligned
            corners (the ViT paper's code), `bicubic` (MAE's), or `timm` (bicubic and antialiased). Relative and
            rotary positions go timm's way whatever this says.
        name: the timm model that a file of weights is of, e.g. `vit_base_patch16_224` of an MAE checkpoint.
        revision: branch, tag or commit on the Hub.
        allow_pickle: read weights that are pickled too; only tensors are taken from them.
        **arguments: further arguments of the timm model.

    Raises:
        ValueError: if there is no such source, or it does not suit.
    """
    source = _expanded(source)
    if Path(source).is_file():
        common: dict[str, Any] = {"patch_size": patch_size, "pool": pool, "mean": mean, "std": std, **arguments}
        own = _from_file(Path(source), name, image_size, allow_pickle, common)
        if image_size in (None, own.image_size):
            return own
        with TemporaryDirectory() as folder:  # described, it is as any other source
            export_encoder(own, Path(folder))
            return load_encoder(folder, image_size=image_size, pool=pool, resize=resize)
    if revision is not None:
        source = f"{source}@{revision}"
    origin, name, saved, config = open_source(source, allow_pickle=allow_pickle)
    arguments = saved | arguments
    mean, std = mean or tuple(config["mean"]), std or tuple(config["std"])
    if not has_patches(name, arguments):
        _no_patch_size(name, patch_size)
        size = image_size or config["input_size"][-1]
        arguments, width = without_patches(name, size, pool, arguments)
        model = _with_weights(source, origin, arguments)
        plain = Backbone(model, image_size=size, width=width, name=name, arguments=arguments, mean=mean, std=std)
        plain.made_for = config["input_size"][-1]
        return plain
    own = layout_of(name, skeleton(name, **arguments), arguments.get("img_size"))
    if patch_size not in (None, own.patch_size):
        said = (
            f"patch_size {patch_size} does not fit the weights of {source}, whose patches have {own.patch_size} pixels"
        )
        raise SettingError({"patch_size": f"{said} a side; leave patch_size out"})
    size = image_size or own.image_size
    check_divides(name, size, own.patch_size)
    own_arguments = arguments
    if size != own.image_size:
        arguments = arguments | {"img_size": size}
    saved_pool = arguments.get("global_pool")
    if (pool is not None and pool != saved_pool) or saved_pool == "":  # which gives tokens, and no feature
        arguments |= pooling(name, pool, arguments)
    layout = layout_of(name, skeleton(name, **arguments), size)
    vit = _with_weights(source, origin, arguments)
    if layout.grid != own.grid and resize != "timm" and (resized := learnt_positions(vit)) is not None:
        # timm has resized them already; read once more at their own size, whatever form the file has them in.
        positions = learnt_positions(_with_weights(source, origin, own_arguments))
        assert positions is not None
        resized.copy_(resize_positions(positions, own.grid, layout.grid, resize))
    encoder = Encoder(vit, layout, name=name, arguments=arguments, mean=mean, std=std)
    encoder.made_for = own.image_size
    return encoder


def build_encoder(settings: EncoderSettings, image_size: int, data: DataSettings | None = None) -> Encoder:
    """The encoder that a recipe asks for, from random weights or from a source.

    Args:
        settings: of the encoder.
        image_size: pixels a side.
        data: the settings to name in errors about the image size.

    Raises:
        SettingError: if it cannot be built, has no patches, or `arguments` say what a setting of its own says.
    """
    with settings.blamed("name" if settings.source is None else "source"):
        if settings.source is None:
            check_name(settings.name)
            if not has_patches(settings.name, settings.arguments):
                layout_of(settings.name, skeleton(settings.name))  # says what is missing, before anything else
    encoder = build_backbone(settings, image_size, data)
    if not isinstance(encoder, Encoder):
        with settings.blamed("source"):
            layout_of(encoder.name, skeleton(encoder.name))
    assert isinstance(encoder, Encoder)
    return encoder


def build_backbone(settings: EncoderSettings, image_size: int, data: DataSettings | None = None) -> Backbone:
    """The network that a recipe asks for, for classification: an `Encoder` where it has patches, else without.

    Args:
        settings: of the network.
        image_size: pixels a side.
        data: the settings to name in errors about the image size.

    Raises:
        SettingError: if it cannot be built, or `arguments` say what a setting of its own says.
    """
    elsewhere = {} if data is None else {"image_size": data}
    with settings.blamed("name" if settings.source is None else "source", **elsewhere):
        return _build(settings, image_size)


def _build(settings: EncoderSettings, image_size: int) -> Backbone:
    """Raises ValueError, and SettingError by the names of arguments."""
    if taken := (SETTINGS_OF_THEIR_OWN | NOT_THE_MODEL_S) & set(settings.arguments):
        said = (
            f"arguments cannot hold {', '.join(sorted(taken))}: images have 3 channels, the encoder has no "
            "classes, and the rest is set by data.image_size, encoder.name, encoder.source, encoder.patch_size, "
            "encoder.pool, encoder.resize, encoder.mean and encoder.std"
        )
        raise SettingError({"arguments": said})
    source = None if settings.source is None else _expanded(settings.source)
    common: dict[str, Any] = {"image_size": image_size, "pool": settings.pool}
    if settings.drop_path is not None:
        common["drop_path_rate"] = settings.drop_path
    if source is None:
        own = {"patch_size": settings.patch_size, "mean": settings.mean, "std": settings.std, **settings.arguments}
        return create_backbone(settings.name, **(own | common))
    if not settings.pretrained:
        name, saved, mean, std = architecture_of(source)
        own = {"mean": settings.mean or mean, "std": settings.std or std, **saved}
        common["pool"] = settings.pool or own.pop("global_pool", None)
        own.pop("img_size", None)
        return create_backbone(name, **(own | common))
    if Path(source).is_file():
        common |= {"name": settings.name, "patch_size": settings.patch_size, **settings.arguments}
    return load_encoder(
        source,
        resize=settings.resize,
        mean=settings.mean,
        std=settings.std,
        allow_pickle=settings.allow_pickle,
        **common,
    )


def cut_after(encoder: Backbone, block: int) -> None:
    """Cut off the blocks behind one, counted from 1; its tokens go through the final norm then.

    Raises:
        ValueError: if there is no such block, or timm cannot build the architecture with so few.
    """
    blocks = getattr(encoder.model, "blocks", None) if isinstance(encoder, Encoder) else None
    if not isinstance(blocks, nn.Sequential | nn.ModuleList):
        raise ValueError(f"{encoder.name} has no row of blocks to take features after one of them; leave block out")
    if block > len(blocks):
        raise ValueError(f"there is no block {block}: {encoder.name} has {len(blocks)}")
    arguments = encoder.arguments | {"depth": block}
    encoder.model.blocks = blocks[:block]
    here = {name: value.shape for name, value in encoder.model.state_dict().items()}
    if {name: value.shape for name, value in skeleton(encoder.name, **arguments).state_dict().items()} != here:
        raise ValueError(f"timm builds {encoder.name} in another way with {block} blocks; leave block out")
    encoder.arguments = arguments


def _expanded(source: str | Path) -> str:
    return str(Path(source).expanduser()) if str(source).startswith("~") else str(source)


def _from_file(
    path: Path, name: str | None, image_size: int | None, allow_pickle: bool, settings: dict[str, Any]
) -> Backbone:
    """The named network with the weights of a file: at the image size that its learnt absolute positions are for, or
    where it has none, at the one that is asked for.
    """
    if name is None:
        raise ValueError(f"{path} is a file of weights, which does not say of what: give the name of the timm model")
    weights = read_weights(path, allow_pickle=allow_pickle)
    check_name(name)
    if has_patches(name, {}):
        small = skeleton(name)
        patch_size = settings["patch_size"] or layout_of(name, small).patch_size
        image_size = size_of(weights, getattr(small, "num_prefix_tokens", 1), patch_size) or image_size
    own = create_backbone(name, image_size=image_size, **settings)
    fill(own.model, weights, path, name)
    return own


def _with_weights(source: str | Path, origin: str, arguments: dict[str, Any]) -> Any:
    """timm's model with the weights of a source.

    Raises:
        ValueError: if they cannot be read, or do not fit.
    """
    try:
        return timm.create_model(origin, pretrained=True, num_classes=0, **arguments)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"the weights of {source} cannot be loaded: {str(error).splitlines()[0]}") from error


def _no_patch_size(name: str, patch_size: int | None) -> None:
    if patch_size is not None:
        said = f"patch_size {patch_size} cannot be set for {name}, which has no patches; leave it out"
        raise SettingError({"patch_size": said})

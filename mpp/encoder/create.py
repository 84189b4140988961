"""Networks with random weights from a timm name: encoders of patches, and for classification any other network."""

from __future__ import annotations

from typing import Any

import timm
from torch import nn

from mpp.encoder.backbone import Architecture, Backbone, Channels
from mpp.encoder.encoder import Encoder, network
from mpp.encoder.probe import Probe, check_name, has_patches, native_size, probe, skeleton
from mpp.settings import SettingError


def architecture(
    name: str,
    *,
    image_size: int | None = None,
    patch_size: int | None = None,
    pool: str | None = None,
    needs_patches: bool = False,
    **arguments: Any,
) -> Architecture:
    """Check the arguments of `create_backbone` by one probe, without memory for weights.

    Args:
        name: any timm model that gives one feature an image, e.g. `vit_base_patch16_224` or `resnet50`.
        image_size, patch_size, pool, **arguments: as for `create_encoder`. A network without patches has no patch
            size, and by default pools in timm's own way.
        needs_patches: refuse a network without patches.

    Raises:
        ValueError: for an unknown or unsuitable model, or for sizes that do not fit.
    """
    check_name(name)
    if "img_size" in arguments:
        raise SettingError({"image_size": f"give image_size={arguments['img_size']} instead of timm's own img_size"})
    if patch_size is not None:
        arguments["patch_size"] = patch_size
    size = image_size or native_size(name)
    try:
        found = probe(name, arguments, size)
    except SettingError:
        _check_sizes(probe(name), size, patch_size, needs_patches)  # may have a better explanation
        raise
    broken = found.layout is None and (needs_patches or (found.embeds_patches and has_patches(name, {})))
    _check_sizes(probe(name) if broken else found, size, patch_size, needs_patches)
    if broken:
        raise ValueError(found.refusal)
    sized = {"img_size": size} if found.takes_size else {}
    pooling = found.pooling(pool, arguments)
    arguments |= pooling | sized if found.layout is None else sized | pooling
    return Architecture(name, arguments, size, found.width, found.layout)


def _check_sizes(found: Probe, size: int, patch_size: int | None, needs_patches: bool) -> None:
    """Refuse sizes that do not fit an architecture, by a SettingError, and the lack of patches that are needed."""
    if found.layout is None:
        if needs_patches:
            raise ValueError(found.refusal)
        if patch_size is not None:
            message = f"patch_size {patch_size} cannot be set for {found.name}, which has no patches; leave it out"
            raise SettingError({"patch_size": message})
        return
    if patch_size is not None and hasattr(found.model.patch_embed, "backbone"):
        reason = "its patches come out of a convolutional stem; leave patch_size out, or choose a plain ViT"
        raise SettingError({"patch_size": f"patch_size {patch_size} cannot be set for {found.name}: {reason}"})
    patch_size = patch_size or found.patch_size
    if size % patch_size:
        below, above = size // patch_size * patch_size, -(-size // patch_size) * patch_size
        near = f"{below} or {above}" if below else str(above)
        message = f"image_size {size} is not a multiple of the patch size {patch_size} of {found.name}; use {near}"
        raise SettingError({"image_size": f"{message}, or another patch_size"})


def create_backbone(name: str, *, mean: Channels | None = None, std: Channels | None = None, **sizes: Any) -> Backbone:
    """A network with random weights: an `Encoder` where timm's model has patches.

    `mean` and `std` are as for `create_encoder`; name, `**sizes` and errors as for `architecture`.
    """
    found = architecture(name, **sizes)
    return network(timm.create_model(name, pretrained=False, num_classes=0, **found.arguments), found, mean, std)


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
        mean: of pixels in [0, 1]; None takes the ViT paper's 0.5.
        std: of pixels in [0, 1]; None takes the ViT paper's 0.5, which maps them to [−1, 1].
        **arguments: further arguments of the timm model, e.g. `depth=6`.

    Raises:
        ValueError: for an unknown or unsuitable model, or for sizes that do not fit.
    """
    sizes: dict[str, Any] = {"image_size": image_size, "patch_size": patch_size, "pool": pool, **arguments}
    encoder = create_backbone(name, mean=mean, std=std, needs_patches=True, **sizes)
    assert isinstance(encoder, Encoder)
    return encoder


def cut_after(encoder: Backbone, block: int) -> None:
    """Cut off the blocks after one, counted from 1; its tokens then go through the final norm.

    Raises:
        ValueError: if there is no such block, or timm cannot build the architecture with so few.
    """
    blocks = getattr(encoder.model, "blocks", None) if isinstance(encoder, Encoder) else None
    if not isinstance(blocks, nn.Sequential | nn.ModuleList):
        raise ValueError(f"{encoder.name} has no row of blocks to take features after one of them; leave block out")
    if block > len(blocks):
        raise ValueError(f"there is no block {block}: {encoder.name} has {len(blocks)}")
    arguments: dict[str, Any] = encoder.arguments | {"depth": block}
    encoder.model.blocks = blocks[:block]
    here = {name: value.shape for name, value in encoder.model.state_dict().items()}
    if {name: value.shape for name, value in skeleton(encoder.name, arguments).state_dict().items()} != here:
        raise ValueError(f"timm builds {encoder.name} in another way with {block} blocks; leave block out")
    encoder.arguments = arguments

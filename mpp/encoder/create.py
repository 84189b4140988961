"""Networks with random weights from a timm name: encoders of patches, and for classification any other network."""

from __future__ import annotations

from typing import Any, NamedTuple

import timm
from torch import nn

from mpp.encoder.backbone import Backbone
from mpp.encoder.encoder import Encoder, Layout
from mpp.encoder.inspect import Probe, check_divides, check_name, has_patches, native_size, probe, skeleton
from mpp.settings import SettingError

# The ViT paper's: pixels in [−1, 1].
HALF = (0.5, 0.5, 0.5)


class Plan(NamedTuple):
    """A network that can be built: nothing about it is left to find out."""

    name: str
    arguments: dict[str, Any]
    """timm's."""
    image_size: int
    width: int
    """d, the length of a feature."""
    layout: Layout | None
    """None for a network without patches."""

    def backbone(self, model: nn.Module, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Backbone:
        """The network around timm's model: an `Encoder` where it has patches."""
        mean, std = mean or HALF, std or HALF
        if self.layout is not None:
            return Encoder(model, self.layout, name=self.name, arguments=self.arguments, mean=mean, std=std)
        return Backbone(
            model, image_size=self.image_size, width=self.width, name=self.name, arguments=self.arguments,
            mean=mean, std=std,
        )  # fmt: skip

    def build(self, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Backbone:
        """The network with random weights."""
        model = timm.create_model(self.name, pretrained=False, num_classes=0, **self.arguments)
        return self.backbone(model, mean, std)


def plan(
    name: str,
    *,
    image_size: int | None = None,
    patch_size: int | None = None,
    pool: str | None = None,
    needs_patches: bool = False,
    **arguments: Any,
) -> Plan:
    """Check what is asked for by one probe of the architecture, without memory for any weights.

    Args:
        name, image_size, patch_size, pool, **arguments: as for `create_backbone`.
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
        _check_sizes(probe(name), size, patch_size, needs_patches)  # which may have a better explanation
        raise
    if found.layout is not None:
        _check_sizes(found, size, patch_size, needs_patches)
        arguments |= {"img_size": size} | found.pooling(pool, arguments)
        return Plan(name, arguments, size, found.layout.width, found.layout)
    if needs_patches or (found.embeds_patches and has_patches(name, {})):
        _check_sizes(probe(name), size, patch_size, needs_patches)
        raise ValueError(found.refusal)
    _check_sizes(found, size, patch_size, needs_patches)
    if pool is not None:
        found.check_pool(pool)
        arguments["global_pool"] = pool
    if found.takes_size:
        arguments["img_size"] = size
    return Plan(name, arguments, size, found.width, None)


def _check_sizes(found: Probe, size: int, patch_size: int | None, needs_patches: bool) -> None:
    """Refuse sizes that do not fit an architecture.

    Raises:
        SettingError: naming the setting.
        ValueError: if patches are needed and the architecture has none.
    """
    if found.layout is None:
        if needs_patches:
            raise ValueError(found.refusal)
        if patch_size is not None:
            message = f"patch_size {patch_size} cannot be set for {found.name}, which has no patches; leave it out"
            raise SettingError({"patch_size": message})
        return
    if patch_size is not None and found.is_hybrid:
        message = (
            f"patch_size {patch_size} cannot be set for {found.name}: its patches come out of a convolutional stem"
        )
        raise SettingError({"patch_size": f"{message}; leave patch_size out, or choose a plain ViT"})
    check_divides(found.name, size, patch_size or found.patch_size)


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
    sizes = {"image_size": image_size, "patch_size": patch_size}
    encoder = plan(name, **sizes, pool=pool, needs_patches=True, **arguments).build(mean, std)
    assert isinstance(encoder, Encoder)
    return encoder


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
            no patch size, and by default pools in timm's own way.

    Raises:
        ValueError: for an unknown or unsuitable model, or for sizes that do not fit.
    """
    return plan(name, image_size=image_size, patch_size=patch_size, pool=pool, **arguments).build(mean, std)


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
    arguments = encoder.arguments | {"depth": block}
    encoder.model.blocks = blocks[:block]
    here = {name: value.shape for name, value in encoder.model.state_dict().items()}
    if {name: value.shape for name, value in skeleton(encoder.name, **arguments).state_dict().items()} != here:
        raise ValueError(f"timm builds {encoder.name} in another way with {block} blocks; leave block out")
    encoder.arguments = arguments

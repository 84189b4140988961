"""The encoders that are measured."""

from __future__ import annotations

from typing import NamedTuple


class Size(NamedTuple):
    """An encoder, its images, and a batch of them."""

    title: str
    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    batch: int

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return (self.image_size // self.patch_size) ** 2


SIZES = {
    "tiny": Size("ViT-Ti/16, 224 px, batch 32", 224, 16, 192, 12, 3, 32),
    "shipped": Size("width 128, depth 4, patches of 4 px, 32 px, batch 128", 32, 4, 128, 4, 4, 128),
    "rehearsal": Size("ViT-Ti/16, 224 px, batch 4, a rehearsal whose numbers mean nothing", 224, 16, 192, 12, 3, 4),
    "small": Size("ViT-S/16, 224 px, batch 32", 224, 16, 384, 12, 6, 32),
}
"""By name; `shipped` is that of `recipes/mean_color.yaml`."""

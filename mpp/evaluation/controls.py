"""Two controls for learnt features: the pixels themselves, and the mean colours of patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from mpp.evaluation.features import FeatureLayer, Reader

MOST_PIXELS = 32
"""Raw pixels are averaged to at most this many a side: 3,072 features, and no averaging at CIFAR-10's size."""
DEFAULT_GRID = 8


class Control(Reader):
    """`raw_pixels` or `patch_colors`: means of pixels over squares. All are positive: kNN centres them.

    `patch_size` is that of `patch_colors`, a divisor of `image_size`; None takes 8 × 8 patches.
    """

    centre_for_knn: ClassVar[bool] = True

    def __init__(self, name: str, image_size: int, patch_size: int | None) -> None:
        self.name = name
        if name == "patch_colors":
            if patch_size is not None and image_size % patch_size:
                raise ValueError(
                    f"image_size {image_size} is not a multiple of the patch size {patch_size}: set encoder.patch_size"
                )
            self.side = image_size // patch_size if patch_size is not None else min(DEFAULT_GRID, image_size)
        else:
            self.side = min(image_size, MOST_PIXELS)
        self.default = FeatureLayer(0, "avg")

    def read(self, pixels: Tensor, layers: Sequence[FeatureLayer]) -> dict[FeatureLayer, Tensor]:
        """uint8 `(b, 3, h, w)` → float32 `(b, 3 · side²)` in [0, 1]."""
        return {self.default: F.adaptive_avg_pool2d(pixels.float() / 255, self.side).flatten(1)}

    def identity(self) -> dict[str, Any]:
        """Name and size."""
        return {"control": self.name, "side": self.side}

"""Which patch embeddings are corrupted, and how (ViT paper, appendix B.1.2)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field, model_validator

from mpp import randomness
from mpp.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

MASK, SWAP, KEEP = 0, 1, 2
INDEX_BITS = 20
MOST_PATCHES = 1 << INDEX_BITS


class Draw(NamedTuple):
    """One corruption of a batch: all int64 `(b, K)`, on the device of the sample numbers."""

    positions: Tensor
    """The corrupted patches, ascending."""
    kinds: Tensor
    """The kind of each: 0 mask, 1 swap, 2 keep."""
    others: Tensor
    """The patch whose embedding a swap takes; never the patch itself."""


class Corruption(Settings):
    """Corrupt a share of the patch embeddings: of these 80 % become `[mask]`, 10 % another patch's, 10 % stay.

    Not stated in the paper and chosen here: K is exact for every image rather than in the mean; the other
    patch of a swap is another position of the same image; kinds are drawn independently.
    """

    fraction: float = Field(default=0.5, gt=0, le=1)
    """Share of the patches that are corrupted; exactly floor(fraction * N + 1/2) an image, at least 1."""
    mask: float = Field(default=0.8, ge=0, le=1)
    """Share of the corrupted patches whose embedding becomes the learnable `[mask]`."""
    swap: float = Field(default=0.1, ge=0, le=1)
    """Share of the corrupted patches whose embedding becomes that of another patch of the image."""
    keep: float = Field(default=0.1, ge=0, le=1)
    """Share of the corrupted patches whose embedding stays, and which are predicted all the same."""

    @model_validator(mode="after")
    def _shares(self) -> Corruption:
        total = self.mask + self.swap + self.keep
        if not math.isclose(total, 1, abs_tol=1e-6):
            raise ValueError(f"mask, swap and keep must add up to 1; found {total:g}")
        return self

    def count(self, num_patches: int) -> int:
        """K, the number of corrupted patches of an image with `num_patches` patches."""
        return min(max(math.floor(self.fraction * num_patches + 0.5), 1), num_patches)

    def check(self, num_patches: int) -> None:
        """Raise a SettingError for swaps in images of a single patch, and for too many patches."""
        if self.swap > 0 and num_patches < 2:
            message = f"swap is {self.swap:g}, but these images have a single patch: there is no other patch to take"
            raise self.error(swap=f"{message}; set swap to 0 or use smaller patches")
        if num_patches > MOST_PATCHES:
            raise self.error(fraction=f"images have {num_patches} patches; at most {MOST_PATCHES} are supported")

    def draw(self, key: randomness.Key, samples: Tensor, num_patches: int) -> Draw:
        """The corruption of each sample, a pure function of the key and the sample number, int64 `(b,)`."""
        import torch  # late: recipes are read without it

        patches = torch.arange(num_patches, device=samples.device)
        order, kind, other, _ = randomness.words(key, samples[:, None], patches[None, :])
        # 32 random bits above the index: unique, so that the order never depends on how a device breaks ties.
        ranks = (order << INDEX_BITS) | patches
        positions = ranks.topk(self.count(num_patches), dim=1, largest=False, sorted=False).values
        positions = (positions & (MOST_PATCHES - 1)).sort(dim=1).values
        kind, other = kind.gather(1, positions), other.gather(1, positions)
        to_mask = round(self.mask * 2**32)
        to_swap = to_mask + round(self.swap * 2**32) if self.keep > 0 else 2**32
        kinds = (kind >= to_mask).long() + (kind >= to_swap).long()
        others = randomness.below(other, max(num_patches - 1, 1))
        others = (others + (others >= positions).long()).clamp(max=num_patches - 1)  # in a single patch: itself, unused
        return Draw(positions, kinds, others)

"""Position embeddings at another image size."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Resize = Literal["bilinear", "bicubic", "timm"]


def learnt_positions(vit: Any) -> Tensor | None:
    """The learnt absolute position embedding of a timm model, `(1, prefix + grid², d)`, or None if it has none."""
    positions = getattr(vit, "pos_embed", None)
    return positions.detach() if isinstance(positions, Tensor) and positions.ndim == 3 else None


def resize_positions(positions: Tensor, grid: int, new_grid: int, how: Literal["bilinear", "bicubic"]) -> Tensor:
    """Interpolate in two dimensions: `(1, prefix + grid², d)` → `(1, prefix + new_grid², d)`; the prefix is unchanged.

    `bilinear` aligns the corners, as the ViT paper's code; `bicubic` aligns the edges of the outermost patches, as
    MAE's. Neither smooths when it makes the grid smaller.
    """
    prefix = positions.shape[1] - grid**2
    assert prefix >= 0, (tuple(positions.shape), grid)
    patches = positions[:, prefix:].unflatten(1, (grid, grid)).movedim(-1, 1).float()
    patches = F.interpolate(patches, size=(new_grid, new_grid), mode=how, align_corners=how == "bilinear")
    return torch.cat([positions[:, :prefix], patches.movedim(1, -1).flatten(1, 2).to(positions.dtype)], dim=1)

"""Sums that add up over batches and processes, and the means they end in."""

from __future__ import annotations

import torch
from torch import Tensor

# Name → (sum, count), float64. Batches, micro-batches and processes simply add up, on the device.
Scores = dict[str, Tensor]


def precise(device: torch.device) -> torch.dtype:
    """float64, or float32 where the device has nothing better."""
    return torch.float32 if device.type == "mps" else torch.float64


def total(values: Tensor, where: Tensor | None = None) -> Tensor:
    """Sum and count of some values, of those `where` a mask is true: `(2,)` on their device."""
    values = values.detach().to(precise(values.device))
    if where is None:
        return torch.stack([values.sum(), torch.full_like(values.sum(), values.numel())])
    return torch.stack([values.where(where, 0).sum(), where.sum(dtype=values.dtype)])


def add(left: Scores, right: Scores) -> Scores:
    """The sums of two batches together."""
    return {name: left[name] + right[name] for name in right} if left else right


def means(scores: Scores) -> dict[str, float]:
    """Sum over count; names that nothing was counted for are left out. This waits for the device."""
    pairs = torch.stack(list(scores.values())).tolist()
    return {name: value / count for name, (value, count) in zip(scores, pairs, strict=True) if count}

"""Sums that add up over batches and processes, and the means they end in."""

from __future__ import annotations

import torch
from torch import Tensor

# Name → float64 (sum, count). Batches, micro-batches and processes simply add up.
Scores = dict[str, Tensor]


def total(values: Tensor) -> Tensor:
    """Sum and count of some values: float64 `(2,)` in main memory, since not every device has that type."""
    return torch.tensor([values.detach().cpu().double().sum(), values.numel()], dtype=torch.float64)


def add(left: Scores, right: Scores) -> Scores:
    """The sums of two batches together."""
    return {name: left[name] + right[name] for name in right} if left else right


def means(scores: Scores) -> dict[str, float]:
    """Sum over count; names that nothing was counted for are left out."""
    pairs = {name: pair.tolist() for name, pair in scores.items()}
    return {name: value / count for name, (value, count) in pairs.items() if count}

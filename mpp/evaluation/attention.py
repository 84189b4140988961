"""How far attention reaches, and what it reaches through all layers (ViT paper, section 4.5 and figures 6 to 11)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Rollout(NamedTuple):
    """How much each patch of the input flows into a token of the last layer; all rows of attention sum to 1."""

    token: Tensor | None
    """Into the class token, the first of the prefix tokens: `(N,)` or `(images, N)`; None without one."""
    mean: Tensor
    """Into the mean of the patches: `(N,)` or `(images, N)`."""


def attention_distance(
    attention: Any, patch_size: int, *, grid: tuple[int, int] | None = None, renormalize: bool = False
) -> Tensor:
    """The mean distance, in pixels, between a patch and what it attends to (ViT paper, appendix D.7).

    For each layer and head the mean over images and queries i of Σⱼ Aᵢⱼ dᵢⱼ, where d is the distance of the centres
    of two patches.

    Args:
        attention: `(layers, heads, N, N)` or `(images, layers, heads, N, N)`, queries before keys, without prefix
            tokens.
        patch_size: side of a patch in pixels.
        grid: rows and columns of patches; None takes a square.
        renormalize: divide each row by its sum, which prefix tokens that were removed have left below 1.

    Returns:
        float64 `(layers, heads)`.

    Raises:
        ValueError: for another shape, a grid of another number of patches, or rows that sum to 0 or to more than 1.
    """
    weights = _checked(attention, "attention_distance")
    patches = weights.shape[-1]
    if grid is None:
        side = math.isqrt(patches)
        if side * side != patches:
            raise ValueError(f"attention over {patches} patches, which are no square; give grid=(rows, columns)")
        grid = side, side
    if grid[0] * grid[1] != patches:
        raise ValueError(f"a grid of {grid[0]} × {grid[1]} patches, and attention over {patches}")
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    if not torch.isfinite(weights).all():
        raise ValueError("a row of attention sums to 0: it cannot be renormalised")
    rows, columns = (values.flatten() for values in torch.meshgrid(*map(torch.arange, grid), indexing="ij"))
    places = torch.stack([rows, columns], 1).to(weights)
    reached = (weights * (patch_size * torch.cdist(places, places))).sum(-1).mean(-1)
    return reached.mean(0) if reached.ndim == 3 else reached


def attention_rollout(attention: Any, num_prefix_tokens: int = 1) -> Rollout:
    """Attention through all layers (Abnar & Zuidema 2020): the product of ½ (mean over the heads + identity).

    Args:
        attention: `(layers, heads, T, T)` or `(images, layers, heads, T, T)`, queries before keys, the first layer
            first; T counts prefix tokens and patches.
        num_prefix_tokens: class token, registers and others before the patches.

    Raises:
        ValueError: for another shape, or no patches behind the prefix tokens.
    """
    weights = _checked(attention, "attention_rollout")
    tokens = weights.shape[-1]
    if not 0 <= num_prefix_tokens < tokens:
        raise ValueError(f"{num_prefix_tokens} prefix tokens among {tokens}: there are no patches behind them")
    layers = (weights.mean(-3) + torch.eye(tokens).to(weights)) / 2
    through = layers[..., 0, :, :]
    for number in range(1, layers.shape[-3]):
        through = layers[..., number, :, :] @ through
    patches = through[..., num_prefix_tokens:]
    token = patches[..., 0, :] if num_prefix_tokens else None
    return Rollout(token, patches[..., num_prefix_tokens:, :].mean(-2))


def _checked(attention: Any, name: str) -> Tensor:
    """Attention as float64; a ValueError if it is no stack of square matrices of numbers from 0 to 1."""
    weights = torch.as_tensor(attention).detach().double()
    if weights.ndim not in (4, 5) or weights.shape[-1] != weights.shape[-2] or not weights.numel():
        raise ValueError(
            f"{name} needs attention (layers, heads, N, N), or with images first; found {tuple(weights.shape)}"
        )
    if not torch.isfinite(weights).all() or weights.min() < 0 or weights.sum(-1).max() > 1 + 1e-3:
        raise ValueError(f"{name} needs attention after the softmax: numbers from 0, whose rows sum to 1 at most")
    return weights

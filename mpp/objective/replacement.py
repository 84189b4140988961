"""Embeddings in which the drawn patches are replaced: the corruption itself, and its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mpp.objective.corruption import MASK, SWAP, Draw


def corrupt(embeddings: Tensor, mask_token: Tensor, draw: Draw) -> Tensor:
    """The embeddings `(b, N, d)` with the drawn positions replaced; a swap takes the *uncorrupted* embedding.

    They are those before the position embedding; the learnable mask token `(d,)` is converted to their dtype.
    """
    images, num_patches, _ = embeddings.shape
    first = torch.arange(images, device=embeddings.device)[:, None] * num_patches
    sources = torch.where(draw.kinds == SWAP, draw.others, draw.positions) + first
    token = mask_token.to(embeddings.dtype)
    rows = (draw.positions + first).flatten(), sources.flatten(), (draw.kinds == MASK).flatten()
    if embeddings.device.type == "cpu" and not torch.compiler.is_compiling():
        return _Replaced.apply(embeddings, token, *rows)
    return replaced(embeddings, token, *rows)


def replaced(embeddings: Tensor, token: Tensor, positions: Tensor, sources: Tensor, masked: Tensor) -> Tensor:
    """The embeddings with rows at `positions` replaced by the token where `masked`, else by the rows at `sources`.

    All three are `(b·K,)`, and count the rows of all images.
    """
    rows = embeddings.reshape(-1, embeddings.shape[-1])  # whole rows are moved: faster than element by element
    taken = torch.where(masked[:, None], token, rows.index_select(0, sources))
    return rows.index_copy(0, positions, taken).view_as(embeddings)


class _Replaced(torch.autograd.Function):
    """`replaced` on processors, bit for bit, in half of the time or less: one copy, no `where` over all values.

    The token is one more row behind those of the images; in the backward pass that row takes the gradients that nobody
    needs. Sums have the terms and the order that autograd's own have.
    """

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, token: Tensor, positions: Tensor, sources: Tensor, masked: Tensor
    ) -> Tensor:
        images, num_patches, width = embeddings.shape
        last = images * num_patches
        table = embeddings.new_empty(last + 1, width)
        table[:last].view_as(embeddings).copy_(embeddings)
        table[last] = token
        sources = torch.where(masked, last, sources)
        ctx.save_for_backward(positions, sources, masked)
        return table[:last].index_copy_(0, positions, table.index_select(0, sources)).view_as(embeddings)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        positions, sources, masked = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        taken = rows.index_select(0, positions)
        token = (taken * masked[:, None].to(taken.dtype)).sum(0)
        moved = rows.new_zeros(len(rows) + 1, rows.shape[1]).index_add_(0, sources, taken)[:-1]
        return moved.add_(rows.index_fill(0, positions, 0)).view_as(gradient), token, None, None, None

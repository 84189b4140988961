"""Pixels of an image as patches, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from einops import rearrange

if TYPE_CHECKING:
    from torch import Tensor


def patchify(pixels: Tensor, patch_size: int) -> Tensor:
    """`(b, c, rows·P, columns·P)` → `(b, N, P, P, c)`; patches row by row, values ordered (row column channel)."""
    return rearrange(pixels, "b c (h p) (w q) -> b (h w) p q c", p=patch_size, q=patch_size)


def unpatchify(patches: Tensor, rows: int) -> Tensor:
    """The inverse of `patchify`: `(b, N, P, P, c)` → `(b, c, rows·P, N / rows·P)`."""
    return rearrange(patches, "b (h w) p q c -> b c (h p) (w q)", h=rows)


def take(patches: Tensor, positions: Tensor) -> Tensor:
    """Some patches of each image: `(b, N, …)` and int64 `(b, K)` → `(b, K, …)`. Whole rows are moved, for speed."""
    import torch  # late: recipes are read without it

    images, count, *shape = patches.shape
    rows = positions + torch.arange(images, device=positions.device)[:, None] * count
    return patches.reshape(images * count, -1).index_select(0, rows.flatten()).view(images, -1, *shape)


def cell_edges(patch_size: int, cells: int) -> list[tuple[int, int]]:
    """Start and end of each of `cells` cells along a side of `patch_size` pixels; a ValueError if they are too many.

    The edges of adaptive average pooling: if the size is no multiple of the number of cells, they overlap.
    """
    if cells > patch_size:
        raise ValueError(
            f"cells is {cells}, but a patch is only {patch_size} pixels a side; "
            f"use at most {patch_size} cells or a larger patch size"
        )
    return [(i * patch_size // cells, -(-(i + 1) * patch_size // cells)) for i in range(cells)]


def colour_classes(patches: Tensor, cells: int, bits: int) -> Tensor:
    """The class of the mean colour of each cell of each patch, in integers throughout.

    For a cell of n pixels whose channel sums to S, `bin = (S · 2**bits) // (256 · n)`; the class packs the bins
    of the three channels, the first one most significant.

    Patches are uint8 `(b, N, P, P, 3)`, with `cells` cells a side; classes int64 `(b, N, cells²)`, cells row by row, in
    [0, 2**(3·bits)).
    """
    import torch  # late: recipes are read without it

    edges = cell_edges(patches.shape[2], cells)
    # A cell is a sum of whole rows and columns: sums of sums, int32 (255 · P² < 2**31 for any patch there is).
    rows = torch.stack([patches[:, :, top:bottom].sum(2, dtype=torch.int32) for top, bottom in edges], dim=2)
    sums = torch.stack([rows[:, :, :, left:right].sum(3, dtype=torch.int32) for left, right in edges], dim=3)
    # The sizes are computed on the device: a tensor from the host would have to be copied at every step.
    starts = torch.arange(cells, device=patches.device) * patches.shape[2]
    sides = (starts + patches.shape[2] + cells - 1) // cells - starts // cells
    return pack(bins_of_sums(sums, (sides[:, None] * sides)[..., None], bits), bits).flatten(2)


def colour_classes_at(pixels: Tensor, positions: Tensor, patch_size: int, cells: int, bits: int) -> Tensor:
    """`colour_classes` of the patches at int64 `(b, K)` of uint8 pixels `(b, 3, h, w)`: int64 `(b, K, cells²)`.

    Cells have to be of equal size. Pixels are summed where they are: no patch is copied, which takes most of the time.
    """
    import torch  # late: recipes are read without it

    side = patch_size // cells
    assert side * cells == patch_size
    sums = pixels.unflatten(2, (-1, side)).sum(3, dtype=torch.int32)
    sums = sums.unflatten(3, (-1, side)).sum(4, dtype=torch.int32)
    sums = rearrange(sums, "b c (h s) (w t) -> b (h w) (s t) c", s=cells, t=cells)
    return pack(bins_of_sums(take(sums, positions), side**2, bits), bits)


def bins_of_sums(sums: Tensor, pixels: Tensor | int, bits: int) -> Tensor:
    """Channel sums over so many pixels → bins, `(S · 2**bits) // (256 · n)`, in int64."""
    return (sums.long() << bits) // (256 * pixels)


def pack(bins: Tensor, bits: int) -> Tensor:
    """Bins `(…, 3)` → classes `(…)`: `r · 4**bits + g · 2**bits + b`."""
    red, green, blue = bins.unbind(-1)
    return (red << (2 * bits)) | (green << bits) | blue


def unpack(classes: Tensor, bits: int) -> Tensor:
    """Classes `(…)` → the colours at the middle of their bins, float32 `(…, 3)` in [0, 1]."""
    import torch

    top = (1 << bits) - 1
    bins = torch.stack([(classes >> (2 * bits)) & top, (classes >> bits) & top, classes & top], dim=-1)
    return (bins.float() + 0.5) / (top + 1)

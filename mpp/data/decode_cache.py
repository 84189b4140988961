"""Decoded images by row number, read each time or kept in memory; damaged ones replaced by a neighbour."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from torch import Tensor

from mpp.data.decode import DamagedImageError, decode
from mpp.data.sources import ImageRows

NEIGHBOURS = 16
"""So many rows after a damaged one are tried in its place at least."""


class TooManyDamagedError(RuntimeError):
    """So many images cannot be decoded that going on makes no sense."""


class DecodedImage(NamedTuple):
    """The pixels that stand for a row."""

    pixels: Tensor
    """uint8 `(3, h, w)`."""
    row: int
    """The row they come from: the one asked for, or the next good one."""
    damaged: tuple[tuple[int, str], ...]
    """Rows that could not be decoded on the way, and why."""


class DecodedImages:
    """The decoded images of a split.

    Args:
        rows: the split.
        cache: decode everything now, and keep it.
        max_bad_share: so many of all may be damaged, in a row too.
    """

    def __init__(self, rows: ImageRows, *, cache: bool = False, max_bad_share: float = 0.0) -> None:
        self.rows = rows
        self._tries = min(max(NEIGHBOURS, math.ceil(max_bad_share * len(rows)) + 1), len(rows))
        self._kept: list[Tensor | DamagedImageError] | None = None
        if cache:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                self._kept = list(pool.map(self._attempt, range(len(rows))))

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, row: int) -> DecodedImage:
        """The pixels of a row, or of the first good row after it.

        Raises:
            TooManyDamagedError: if the next rows are all damaged.
        """
        damaged: list[tuple[int, str]] = []
        for step in range(self._tries):
            candidate = (row + step) % len(self)
            pixels = self._kept[candidate] if self._kept is not None else self._attempt(candidate)
            if isinstance(pixels, Tensor):
                return DecodedImage(pixels, candidate, tuple(damaged))
            damaged.append((candidate, str(pixels)))
        examples = "\n".join(f"  {self.rows.where(bad)}: {reason}" for bad, reason in damaged[:5])
        raise TooManyDamagedError(f"{self.rows.name}: {len(damaged)} images in a row cannot be decoded:\n{examples}")

    def _attempt(self, row: int) -> Tensor | DamagedImageError:
        try:
            return decode(self.rows.encoded(row))
        except (DamagedImageError, OSError, ValueError) as error:
            return DamagedImageError(str(error))

"""Decoded images by row number, optionally cached in memory; a damaged image is replaced by the next good one."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import NamedTuple

import numpy as np
from torch import Tensor

from mpp.data.crops import Choose, Crop, whole
from mpp.data.decode import decode_crop
from mpp.data.table import ImageTable

CHUNK = 64
"""Images that a thread decodes at a time into the cache."""
NEIGHBOURS = 16
"""The smallest number of rows to try: a row, and the rows after it if it is damaged."""


class TooManyDamagedError(RuntimeError):
    """Too many images cannot be decoded."""


class DecodedImage(NamedTuple):
    """The pixels of a row, or of a good row after it."""

    pixels: Tensor
    """uint8 `(3, h, w)`: at least what the crop needs."""
    crop: Crop
    """In the pixels."""
    row: int
    """Of the pixels."""
    damaged: tuple[tuple[int, str], ...]
    """Damaged rows before it, each with the reason."""


class DecodedImages:
    """The decoded images of a table.

    Args:
        rows: the table.
        cache: decode all images now, and keep them in memory.
        max_bad_share: largest share of damaged images, even if they are consecutive.
        decoder: of a crop of an image file; with a cache, of all of it.
    """

    def __init__(
        self,
        rows: ImageTable,
        *,
        cache: bool = False,
        max_bad_share: float = 0.0,
        decoder: Callable[[bytes, Choose], tuple[Tensor, Crop]] = decode_crop,
    ) -> None:
        self.rows, self._decode = rows, decoder
        self._tries = min(max(NEIGHBOURS, math.ceil(max_bad_share * len(rows)) + 1), len(rows))
        self._cached: list[tuple[Tensor, Crop] | str] = []
        if cache:
            chunks = np.array_split(np.arange(len(rows)), -(-len(rows) // CHUNK))
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                decoded = pool.map(lambda chunk: [self._decoded(row, whole) for row in chunk.tolist()], chunks)
                self._cached = list(chain.from_iterable(decoded))

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, row: int, choose: Choose = whole) -> DecodedImage:
        """Decode a crop of a row, or of the first good row after it.

        Raises:
            TooManyDamagedError: if all that may be tried are damaged.
        """
        damaged: list[tuple[int, str]] = []
        for step in range(self._tries):
            candidate = (row + step) % len(self.rows)
            found = self._cached[candidate] if self._cached else self._decoded(candidate, choose)
            if not isinstance(found, str):
                pixels, crop = found
                crop = choose(crop.height, crop.width) if self._cached else crop
                return DecodedImage(pixels, crop, candidate, tuple(damaged))
            damaged.append((candidate, found))
        examples = "\n".join(f"  {self.rows.where(bad)}: {reason}" for bad, reason in damaged[:5])
        raise TooManyDamagedError(f"{self.rows.name}: {len(damaged)} images in a row cannot be decoded:\n{examples}")

    def _decoded(self, row: int, choose: Choose) -> tuple[Tensor, Crop] | str:
        """Pixels and the crop in them, or why there are none."""
        try:
            return self._decode(self.rows.encoded(row), choose)
        except (OSError, ValueError) as error:
            return str(error)

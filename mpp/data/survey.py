"""What the headers of some images say that a user has to know: pages, transparency, 16 bits, damage."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mpp.data.decode import has_16_bit_colours
from mpp.data.inventory import counted
from mpp.data.settings import DataSettings
from mpp.data.table import ImageTable

SURVEYED = 100
"""Images whose headers are read, evenly spaced."""
DECODED = 10
"""Images of 16 bits whose values are read."""
FEW = 100
"""Fewer training images are too few to learn from."""
PAGES = ("TIFF", "GIF", "PNG", "WEBP")
"""Formats of several pages or frames. The second picture in a JPEG of a telephone is a preview."""


class ColourHistogram:
    """How the colours of images are distributed, in cubes of 32 grey values a side."""

    def __init__(self) -> None:
        self._counts = torch.zeros(8**3, dtype=torch.int64)

    def add(self, pixels: Tensor) -> None:
        """Count every fourth row and column of uint8 pixels `(b, 3, h, w)`."""
        red, green, blue = (pixels[:, :, ::4, ::4] >> 5).long().unbind(1)
        self._counts += torch.bincount((red * 64 + green * 8 + blue).flatten(), minlength=8**3)

    @property
    def total(self) -> int:
        """The pixels that were counted."""
        return int(self._counts.sum())

    @property
    def entropy(self) -> float:
        """In nats; 0 if all pixels are in one cube."""
        shares = self._counts[self._counts > 0].double() / self._counts.sum()
        return abs(float((shares * shares.log()).sum()))


class Survey:
    """The headers of at most `SURVEYED` images of a table.

    Attributes:
        notes: sentences on how images are read.
        warnings: sentences on what is probably wrong.
    """

    def __init__(self, rows: ImageTable, settings: DataSettings) -> None:
        self._found: Counter[str] = Counter()
        self._pages = self._most = 0
        self._numbers = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), SURVEYED)).astype(int))
        for number in self._numbers:
            try:
                with Image.open(io.BytesIO(rows.encoded(int(number)))) as image:
                    self._read(image)
            except Exception:  # damaged images are counted and reported when they are decoded
                continue
        self.notes = list(self._notes(settings))
        self.warnings = list(self._warnings(len(rows), settings))

    def _read(self, image: Image.Image) -> None:
        if image.format in PAGES and (pages := getattr(image, "n_frames", 1)) > 1:
            self._found["pages"] += 1
            self._pages = max(self._pages, pages)
        colours = has_16_bit_colours(image)
        if colours or image.mode.startswith("I;16"):
            self._found["16 bits"] += 1
            if self._found["16 bits"] <= DECODED:
                highest = int(np.asarray(image).max())
                self._most = max(self._most, (highest << 8) + 255 if colours else highest)
        elif image.has_transparency_data:
            self._found["transparent"] += 1

    def _of(self, what: str) -> str:
        found, all_ = self._found[what], len(self._numbers)
        return f"{found} of {all_} images that were looked at" if found < all_ else f"all {all_} images looked at"

    def _notes(self, settings: DataSettings) -> Iterator[str]:
        if self._found["pages"]:
            yield (
                f"{self._of('pages')} have several pages or frames, up to {self._pages:,}: only the first of each is "
                "used; save the others as files of their own to use them"
            )
        if self._found["transparent"]:
            shown = f"shown on {settings.background}" if settings.background else "ignored"
            yield f"{self._of('transparent')} can be transparent: transparency is {shown} (data.background)"
        if self._found["16 bits"]:
            yield (
                f"{self._of('16 bits')} have 16 bits: values from 0 to {2**settings.bits - 1:,} become 0 to 255 "
                "(data.bits)"
            )

    def _warnings(self, rows: int, settings: DataSettings) -> Iterator[str]:
        if rows < FEW:
            there = "there is only" if rows == 1 else "there are only"
            yield f"{there} {counted(rows, 'image')} to train on: expect features hardly better than random ones"
        used = max(self._most.bit_length(), 8)
        if self._found["16 bits"] and used < settings.bits - 1:
            yield (
                f"the 16-bit images reach {self._most:,} of {2**settings.bits - 1:,}, and will be nearly black: set "
                f"data.bits={used} if that is all they use"
            )
        elif self._most >= 2**settings.bits:
            yield (
                f"the 16-bit images reach {self._most:,}, and data.bits={settings.bits} makes all above "
                f"{2**settings.bits - 1:,} white"
            )

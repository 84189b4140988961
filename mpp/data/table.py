"""A table of images: the protocol between a source of images and everything that decodes, crops or trains."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from mpp.data.sampler import Numbers


class ImageLocation(NamedTuple):
    """Where an image comes from, for messages."""

    row: int
    """In its split."""
    path: str | None = None
    """Of its file, if it has one."""

    def __str__(self) -> str:
        return f"row {self.row}" + (f" ({self.path})" if self.path else "")


class ImageTable(Protocol):
    """Encoded images in a fixed order, and labels where there are any. Loader processes read copies of it."""

    name: str
    """For messages."""
    split: str
    """The name of the split in the data set."""
    labels: Numbers | None
    """The class of each row: int64 `(n,)` in [0, len(class_names)), or None for unlabelled images."""
    class_names: list[str] | None
    source_rows: Numbers
    """int64 `(n,)`: the number of each row among all rows of all splits, which tells whether two tables overlap."""

    def __len__(self) -> int: ...

    def encoded(self, row: int) -> bytes:
        """The image file of a row, e.g. a JPEG.

        Raises:
            ValueError: if the row has no image.
            OSError: if its file cannot be read.
        """
        ...

    def where(self, row: int) -> ImageLocation:
        """The location of a row, even if the image is damaged."""
        ...


class Subset:
    """The `rows` of a table, int64 `(n,)` in any order, as a table. Locations are those of the whole table."""

    def __init__(self, table: ImageTable, rows: Numbers, name: str) -> None:
        self.name, self.split, self.class_names = name, table.split, table.class_names
        self.labels = None if table.labels is None else table.labels[rows]
        self.source_rows = table.source_rows[rows]
        self._table, self._rows = table, np.asarray(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def encoded(self, row: int) -> bytes:
        """The image file of a row; see `ImageTable`."""
        return self._table.encoded(int(self._rows[row]))

    def where(self, row: int) -> ImageLocation:
        """The location of a row; see `ImageTable`."""
        return self._table.where(int(self._rows[row]))

"""A table of `datasets` as an `ImageTable`: which columns hold images and labels, and what the classes are."""

from __future__ import annotations

import difflib
from functools import cached_property
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
from datasets.utils.file_utils import xopen

from mpp.data.sampler import Numbers
from mpp.data.settings import DataSettings
from mpp.data.table import ImageLocation
from mpp.settings import SettingError

MAX_CLASSES = 10**6
"""Larger numbers are ids, not classes."""


class Selection(NamedTuple):
    """Rows of a data set, and their numbers, int64 `(n,)`: in the split, and among the rows of all splits."""

    table: datasets.Dataset
    split_rows: Numbers
    source_rows: Numbers

    def select(self, rows: Numbers) -> Selection:
        """Select rows by their position."""
        return Selection(self.table.select(rows), self.split_rows[rows], self.source_rows[rows])


class ArrowTable:
    """An `ImageTable` on columns of a table of `datasets`.

    Args:
        selection: the rows.
        image, label: the columns; None for no labels.
        classes: names of the labels.
        name, split: as in `ImageTable`.

    Raises:
        ValueError: if there are no rows, or a label is outside the classes.
        SettingError: if a column is missing.
    """

    def __init__(
        self, selection: Selection, image: str, label: str | None, classes: list[str] | None, *, name: str, split: str
    ) -> None:
        table = selection.table
        for setting, column in (("image_column", image), ("label_column", label)):
            if column is not None:
                require_column(table, column, setting, name)
        if len(table) == 0:
            raise ValueError(f"{name} is empty: it has no rows")
        self.name, self.split = name, split
        self.source_rows, self._split_rows = selection.source_rows, selection.split_rows
        self._images = table.select_columns([image]).cast_column(image, datasets.Image(decode=False)).with_format(None)
        self._image = image
        self.class_names = classes
        self.labels = _labels(selection, label, classes, name) if classes is not None and label else None

    def __len__(self) -> int:
        return len(self._images)

    def encoded(self, row: int) -> bytes:
        """The image file of a row; see `ImageTable`."""
        value: dict[str, Any] | None = self._value(row)
        if value is not None and value["bytes"] is not None:
            return value["bytes"]
        if value is None or value["path"] is None:
            raise ValueError("the row holds no image")
        with xopen(value["path"], "rb") as file:  # it may be in an archive: `zip://a.png::photos.zip`
            return file.read()

    def _value(self, row: int) -> dict[str, Any] | None:
        """Of the image column. Read from the memory map itself: `datasets` takes several times as long to format it."""
        column, rows = self._column
        return column[row if rows is None else rows[row]].as_py()

    @cached_property
    def _column(self) -> tuple[pa.ChunkedArray, Numbers | None]:
        """The column in all rows of the files, and which of these the table has: None for all in order."""
        rows = self._images._indices
        numbers = None if rows is None else rows.column(0).to_numpy().astype(np.int64)
        return self._images.data.column(self._image), numbers

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_column"}  # it would copy all images

    def where(self, row: int) -> ImageLocation:
        """The location of a row; see `ImageTable`."""
        try:
            path = (self._value(row) or {}).get("path")
        except Exception:  # whatever the readers of `datasets` raise on a damaged row
            path = None
        return ImageLocation(int(self._split_rows[row]), path)


def _labels(selection: Selection, column: str, class_names: list[str], name: str) -> Numbers:
    """The class of each row: int64 `(rows,)`. Raises ValueError if a label is outside the classes."""
    labels, values = class_numbers(selection.table, column, class_names)
    wrong = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
    if len(wrong):
        row, value = selection.split_rows[wrong[0]], values[wrong[0]]
        raise ValueError(
            f"{name}: {len(wrong)} of {len(labels)} labels in column {column!r} lie outside the "
            f"{len(class_names)} classes; the first is row {row} with {value!r}"
        )
    return labels


def class_numbers(table: datasets.Dataset, column: str, class_names: list[str]) -> tuple[Numbers, list[Any]]:
    """The number of each row's class, int64 `(rows,)`, and what the column holds. Rows without a label have −1."""
    values = table.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    index: dict[Any, int] = {None: -1, **{label: number for number, label in enumerate(class_names)}}
    numbers = [index.get(value, -1) if value is None or isinstance(value, str) else value for value in values]
    return np.array(numbers, dtype=np.int64), values


def require_column(table: datasets.Dataset, column: str, setting: str, name: str) -> None:
    """Raise SettingError if the table called `name` has no such column."""
    if column not in table.column_names:
        near = difflib.get_close_matches(column, table.column_names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        message = f"{name} has no column {column!r} among {', '.join(table.column_names)}{hint}"
        raise SettingError({setting: message})


def image_column(table: datasets.Dataset, settings: DataSettings) -> str:
    """The name of the image column. Raises SettingError if there is none, or several to choose from."""
    if settings.image_column is not None:
        feature = table.features.get(settings.image_column)
        encoded_or_path = getattr(feature, "dtype", None) in ("binary", "large_binary", "string")
        if feature is not None and not (holds_images(feature) or encoded_or_path):
            message = f"column {settings.image_column!r} of {settings.source} holds no images but {feature}"
            raise SettingError({"image_column": message})
        return settings.image_column
    found = [name for name, feature in table.features.items() if holds_images(feature)]
    if len(found) != 1:
        which = f" ({', '.join(found)})" if found else ""
        message = f"{settings.source} has {len(found) or 'no'} image columns{which} among "
        raise SettingError({"image_column": f"{message}{', '.join(table.column_names)}; name one with image_column"})
    return found[0]


def holds_images(feature: Any) -> bool:
    """Whether a column holds images, or the structs of bytes and path that they are stored as."""
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def label_column(table: datasets.Dataset, settings: DataSettings, *, required: bool) -> str | None:
    """The name of the label column, or None. Raises SettingError if one is required and there is not exactly one."""
    if settings.label_column is not None:
        return settings.label_column
    found = [name for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(found) == 1:
        return found[0]
    if required:
        message = (
            f"{settings.source} has {len(found) or 'no'} class-label columns, but labels are needed; name one of the "
            f"columns {', '.join(map(repr, table.column_names))} with data.label_column. A column of classes holds a "
            "name or a number for each image, and the images of a class share it"
        )
        raise SettingError({"label_column": message})
    return None


def class_names_of(table: datasets.Dataset, whole: datasets.Dataset, column: str) -> list[str]:
    """The classes of a label column: those of its ClassLabel, else the integers or strings in the `whole` split.

    Raises:
        SettingError: if the column holds no labels, or a row of `table`, to train on, has none.
    """
    feature = table.features.get(column)
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    if feature is None or len(table) == 0:
        return []  # `ArrowTable` raises the error
    not_labels = f"column {column!r} holds no labels: expected integers or strings, found {feature}"
    if getattr(feature, "dtype", None) is None or holds_images(feature):
        raise SettingError({"label_column": not_labels})
    values = [value for value in whole.unique(column) if value is not None]
    if None in table.unique(column):
        message = f"column {column!r} has rows without a label: label them, or leave them out of the split"
        raise SettingError({"label_column": message})
    if all(isinstance(value, str) for value in values):
        return sorted(values)
    if not all(isinstance(value, int) for value in values):
        raise SettingError({"label_column": not_labels})
    if max(values) >= MAX_CLASSES:
        found = f"they reach {max(values)}, with {len(values)} different ones"
        message = f"column {column!r} holds no class numbers: {found}; number the classes from 0"
        raise SettingError({"label_column": message})
    return [str(number) for number in range(max(values) + 1)]

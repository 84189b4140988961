"""A CSV or Parquet table with a column of paths to images, and labels and splits where it has such columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets

from mpp.data.arrow_table import MAX_CLASSES
from mpp.data.image_folder import SPLITS
from mpp.data.inventory import IMAGES
from mpp.data.settings import DataSettings
from mpp.settings import SettingError

SAMPLED = 100
"""Rows that tell which column holds paths."""
DELIMITERS = ",;\t|"


def csv_arguments(path: Path) -> dict[str, Any]:
    """How to read a CSV file: by the delimiter of its first line, and with classes called NA or None as text."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        first = file.readline()
    return {"sep": max(DELIMITERS, key=first.count), "keep_default_na": False, "na_values": [""]}


def with_images(table: datasets.Dataset, path: Path, settings: DataSettings) -> datasets.DatasetDict:
    """The table with its column of paths as images, its labels as classes, by the splits of a column `split`.

    Args:
        table: all rows.
        path: of the table's file: paths are relative to its folder, or to `image_folder`.
        settings: the names of the columns.

    Raises:
        SettingError: if there is no column of paths, or several, or if more files are missing than `max_bad_share`
            allows.
    """
    column = _path_column(table, path, settings)
    folder = path.parent if settings.image_folder is None else Path(settings.image_folder).expanduser()
    folder, values = folder.absolute(), table[:][column]
    paths = [None if value is None else str(folder / Path(value).expanduser()) for value in values]
    missing = [row for row, each in enumerate(paths) if each is None or not Path(each).is_file()]
    if len(missing) > max(settings.max_bad_share * len(paths), 1 if settings.max_bad_share else 0):
        message = f"{len(missing):,} of {len(paths):,} images that {path.name} names do not exist; the first is "
        message += f"row {missing[0]}: {values[missing[0]]} (relative to {folder}; data.image_folder sets another)"
        raise SettingError({"source": message})
    added = f"{column}, absolute"  # first: a table without columns has no rows
    table = table.add_column(added, paths).remove_columns(column)  # pyright: ignore[reportCallIssue]
    table = table.rename_column(added, column).cast_column(column, datasets.Image())
    if settings.label_column is None and (label := _label_column(table, column)) is not None:
        table = _with_classes(table, label)
    return _by_splits(table)


def _path_column(table: datasets.Dataset, path: Path, settings: DataSettings) -> str:
    text = [name for name, feature in table.features.items() if _is_text(feature)]
    if settings.image_column is not None:
        if settings.image_column in text:
            return settings.image_column
        found: list[str] = []
    else:
        sampled = table[:SAMPLED]
        given = {name: [value for value in sampled[name] if value] for name in text}
        found = [n for n, values in given.items() if values and all(Path(v).suffix.lower() in IMAGES for v in values)]
        if len(found) == 1:
            return found[0]
    what = f"{len(found)} columns of paths to images ({', '.join(found)})" if found else "no column of paths to images"
    if settings.image_column is not None:
        what = f"no column {settings.image_column!r} of paths to images"
    message = f"{path.name} has {what} among {', '.join(table.column_names)}; name one with image_column"
    raise SettingError({"image_column": message})


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _label_column(table: datasets.Dataset, images: str) -> str | None:
    """The column `label`, or the only other one that could be it: text or small numbers, twice each on average."""
    if "label" in table.column_names:
        return "label" if images != "label" else None
    others = [name for name in table.column_names if name not in (images, "split") and _repeats(table, name)]
    return others[0] if len(others) == 1 else None


def _repeats(table: datasets.Dataset, column: str) -> bool:
    dtype = str(getattr(table.features[column], "dtype", ""))
    if not dtype.startswith(("string", "large_string", "int", "uint")):
        return False
    values = [value for value in table.unique(column) if value is not None]
    small = dtype.endswith("string") or all(-1 <= value < len(table) for value in values)
    return small and 2 <= len(values) <= len(table) / 2


def _with_classes(table: datasets.Dataset, label: str) -> datasets.Dataset:
    """A column of text or of class numbers as class labels."""
    if isinstance(table.features[label], datasets.ClassLabel):
        return table
    values = [value for value in table.unique(label) if value is not None]
    if values and _is_text(table.features[label]):
        return table.cast_column(label, datasets.ClassLabel(names=sorted(values)))
    if values and all(isinstance(value, int) for value in values) and -1 <= min(values) <= max(values) < MAX_CLASSES:
        names = [str(number) for number in range(max(values) + 1)]
        return table.cast_column(label, datasets.ClassLabel(names=names)) if names else table
    return table


def _by_splits(table: datasets.Dataset) -> datasets.DatasetDict:
    if "split" not in table.column_names or not _is_text(table.features["split"]):
        return datasets.DatasetDict({"train": table})
    values = table[:]["split"]
    splits = [SPLITS.get(str(value).lower()) for value in values]
    if None in splits:
        return datasets.DatasetDict({"train": table})
    rows = {split: [row for row, each in enumerate(splits) if each == split] for split in dict.fromkeys(splits)}
    return datasets.DatasetDict({str(split): table.select(chosen) for split, chosen in rows.items()})

"""Opening a data set: embedded, a folder of images, Parquet, webdataset, or an id on the Hub."""

from __future__ import annotations

import difflib
import sys
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from datasets.exceptions import DatasetGenerationError
from datasets.utils.file_utils import xopen

from mpp import randomness
from mpp.data import synthetic
from mpp.data.dead_leaves import VARIANTS
from mpp.data.image_folder import image_splits
from mpp.data.sampler import Numbers
from mpp.data.settings import DataSettings
from mpp.redact import reason_of
from mpp.settings import SettingError

MOST_CLASSES = 10**6
"""Numbers from here on are ids, and no classes."""
HOLD_OUT = 10
"""One row in this many is held out of train where a data set has no other split."""


class Part(NamedTuple):
    """Some rows of a data set."""

    table: datasets.Dataset
    numbers: Numbers
    """The number of each row in the split that it is from."""
    places: Numbers
    """The number of each row among those of all splits, one after the other."""

    def select(self, rows: Numbers) -> Part:
        """Some of them."""
        return Part(self.table.select(rows), self.numbers[rows], self.places[rows])


class ImageRows:
    """The rows of one split: encoded images, and labels where there are any.

    Attributes:
        name: what a person would call it, for messages.
        split: what the data set calls it.
        places: int64 `(n,)`, the number of each row among those of all splits of the data set.
        class_names: of the labels, or None for unlabelled data.
    """

    def __init__(self, part: Part, image: str, label: str | None, classes: Classes | None, name: str, split: str):
        table = part.table
        self.name, self.split = name, split
        self._images = table.select_columns([image]).cast_column(image, datasets.Image(decode=False)).with_format(None)
        self._image = image
        self._numbers, self.places = part.numbers, part.places
        self.class_names = classes.names if classes else None
        self.labels = classes.numbers(part, label, name) if classes and label else None

    def __len__(self) -> int:
        return len(self._images)

    def select(self, rows: Numbers, name: str) -> ImageRows:
        """Some of the rows, under a name of their own; messages still call them by their numbers in the data set."""
        part = copy(self)
        part.name = name
        part._images = self._images.select(rows)
        part._numbers, part.places = self._numbers[rows], self.places[rows]
        part.labels = None if self.labels is None else self.labels[rows]
        return part

    def encoded(self, row: int) -> bytes:
        """The encoded image of a row.

        Raises:
            ValueError: if the row holds none.
            OSError: if its file cannot be read.
        """
        value: dict[str, Any] | None = self._images[row][self._image]
        if value is not None and value["bytes"] is not None:
            return value["bytes"]
        if value is None or value["path"] is None:
            raise ValueError("the row holds no image")
        with xopen(value["path"], "rb") as file:  # which may lie in an archive: `zip://a.png::photos.zip`
            return file.read()

    def number(self, row: int) -> int:
        """What a row is called in the data set's own split."""
        return int(self._numbers[row])

    def where(self, row: int) -> str:
        """What to call a row in a message: its number, and its path if it has one."""
        try:
            path = (self._images[row][self._image] or {}).get("path")
        except Exception:
            path = None
        return f"row {self.number(row)}" + (f" ({path})" if path else "")


class Classes(NamedTuple):
    """How the values of a label column become class numbers."""

    names: list[str]
    strings: bool

    def numbers(self, part: Part, column: str, name: str) -> Numbers:
        """Class numbers int64 `(rows,)`.

        Raises:
            ValueError: for labels outside the range.
        """
        table = part.table
        values = table.with_format("arrow")[:][column].to_pylist() if len(table) else []
        numbered = values
        if self.strings:
            index = {label: number for number, label in enumerate(self.names)}
            numbered = [index.get(value, -1) for value in values]
        labels = np.array([-1 if value is None else value for value in numbered], dtype=np.int64)
        wrong = np.flatnonzero((labels < 0) | (labels >= len(self.names)))
        if len(wrong):
            raise ValueError(
                f"{name}: {len(wrong)} of {len(labels)} labels in column {column!r} lie outside the "
                f"{len(self.names)} classes; the first is row {part.numbers[wrong[0]]} with {values[wrong[0]]!r}"
            )
        return labels


class Splits(NamedTuple):
    """The rows to train on and the held-out rows."""

    train: ImageRows
    validation: ImageRows


def open_splits(
    settings: DataSettings,
    seed: int,
    *,
    labelled: bool = False,
    held_out: tuple[str, ...] = ("validation", "test"),
) -> Splits:
    """Open the training and the validation split of a data set.

    A split that hides its labels where train has some, as ImageNet's test split does, is passed over: whether labels
    are needed or not, so that runs with labels and without them train on the same images.

    Args:
        settings: which data set, splits and columns.
        seed: decides which images are trained on where `settings` ask for some of them.
        labelled: whether labels are needed.
        held_out: what the second split may be called where the settings do not say, the best name first.

    Raises:
        SettingError: for a source, split, column or label that is not there, or an empty split.
    """
    with settings.blamed("source"):
        return _open_splits(settings, seed, labelled, held_out)


def _open_splits(settings: DataSettings, seed: int, labelled: bool, held_out: tuple[str, ...]) -> Splits:
    """Raises ValueError, and SettingError by the names of settings."""
    tables = _tables(settings)
    train = _slice(tables, settings.split, "split")
    image = _image_column(train.table, settings)
    # Labels that nobody asked for need not be in order.
    label = _label_column(train.table, settings, required=labelled) if labelled or settings.label_column else None
    used = {part.split("[")[0].strip() for part in settings.split.split("+")}
    # Of the whole split: the rows that are left to train on need not show every class.
    whole = datasets.concatenate_datasets([tables[name] for name in sorted(used)])
    classes = _classes(train.table, whole, label) if label else None
    free = [name for name in held_out if name in tables and name not in used]
    shown = label or _label_column(train.table, settings, required=False)
    if shown is not None and (label is not None or _tells_apart(train.table, shown)):
        free = [name for name in free if not _hides(tables[name], shown)]
    other = settings.validation_split or next(iter(free), None)
    if other is not None:
        validation = _slice(tables, other, "validation_split")
    else:
        train, validation = _held_out(train)
    if settings.images is not None:
        rows = len(train.numbers)
        if settings.images > rows:
            said = f"data.images {settings.images} are more than the {rows} of {settings.source}"
            raise SettingError({"images": said})
        order = randomness.permutation(randomness.key(seed, "images"), 0, rows)
        train = train.select(np.sort(order[: settings.images]))
    held = other or f"one in {HOLD_OUT} of {settings.split}"
    return Splits(
        _rows(train, image, label, classes, f"{settings.source}, training split", settings.split),
        _rows(validation, image, label, classes, f"{settings.source}, validation split", held),
    )


def _tables(settings: DataSettings) -> datasets.DatasetDict:
    """All splits of the source, prepared by `datasets` once and cached by it."""
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    family, _, variant = settings.source.partition(":")
    if family == "embedded":
        if (variant or "a") not in VARIANTS:
            known = ", ".join(f"embedded:{v}" for v in VARIANTS)
            raise ValueError(f"data.source {settings.source!r} does not exist; there are {known}")
        return synthetic.load(variant or "a")
    source, arguments = _reader(settings)
    try:
        return datasets.load_dataset(source, **arguments)
    except Exception as error:
        # `datasets` raises whatever its readers raise; each of them means that this source cannot be read.
        told = error.__cause__ if isinstance(error, DatasetGenerationError) else None  # which itself says nothing
        reason = reason_of(told if isinstance(told, Exception) else error).rstrip(".")
        raise ValueError(
            f"data.source {settings.source!r} cannot be opened: {reason}. "
            "It can be embedded or embedded:b, a folder of images, a .parquet or .tar file, a folder of them, "
            "or the id of a data set on the Hugging Face Hub (which needs a network)"
        ) from error


def _reader(settings: DataSettings) -> tuple[str, dict[str, Any]]:
    """What `datasets` calls the source: a reader or a path, and its arguments."""
    path = Path(settings.source).expanduser()
    if path.is_file():
        readers = {".parquet": "parquet", ".tar": "webdataset", ".arrow": "arrow"}
        if path.suffix not in readers:
            raise ValueError(
                f"data.source {settings.source} is a file of another kind than {', '.join(readers)}; "
                "give one of these, or a folder"
            )
        return readers[path.suffix], {"data_files": {"train": str(path)}}
    if path.is_dir():
        if not any(path.iterdir()):
            raise ValueError(f"data.source {settings.source} is an empty folder")
        if settings.subset is None and (splits := image_splits(path)):
            return "imagefolder", {"data_files": splits}
        return str(path), {"name": settings.subset} if settings.subset else {}
    if settings.source.startswith((".", "/", "~")) or settings.source.count("/") > 1:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ValueError(f"data.source {settings.source} does not exist{hint}")
    return settings.source, {"name": settings.subset, "revision": settings.revision}


def _slice(tables: datasets.DatasetDict, spec: str, setting: str) -> Part:
    """A split, or a part of one such as `train[:10%]`."""
    sizes = {name: len(table) for name, table in tables.items()}
    try:
        parts = datasets.ReadInstruction.from_spec(spec).to_absolute(sizes)
    except Exception as error:
        there = ", ".join(f"{name} ({size} rows)" for name, size in sizes.items())
        reason = str(error).strip() or type(error).__name__
        raise SettingError(
            {setting: f"data.{setting} {spec!r} cannot be taken: {reason}; there are {there}"}
        ) from error
    ranges = [range(p.from_ or 0, sizes[p.splitname] if p.to is None else p.to) for p in parts]
    numbers = np.concatenate([np.arange(rows.start, rows.stop) for rows in ranges])
    begins = dict(zip(sizes, np.cumsum([0, *sizes.values()]), strict=False))
    places = np.concatenate(
        [begins[p.splitname] + np.arange(r.start, r.stop) for p, r in zip(parts, ranges, strict=True)]
    )
    slices = [tables[p.splitname].select(rows) for p, rows in zip(parts, ranges, strict=True)]
    return Part(slices[0] if len(parts) == 1 else datasets.concatenate_datasets(slices), numbers, places)


def _hides(table: datasets.Dataset, column: str) -> bool:
    """Whether a split keeps all of its labels to itself: no such column, or nothing in it but null and −1."""
    if column not in table.column_names:
        return True
    kind = str(getattr(table.features[column], "dtype", ""))
    if not kind.startswith(("int", "uint", "string", "large_string", "null")):  # told later, for what it is
        return False
    return len(table) > 0 and set(table.unique(column)) <= {None, -1}


def _tells_apart(table: datasets.Dataset, column: str) -> bool:
    """Whether labels are of two classes at least; those of images in one folder are all the folder's name."""
    return len(set(table.unique(column)) - {None, -1}) > 1


def _held_out(train: Part) -> tuple[Part, Part]:
    """Train and validation, where a data set has but one split: a tenth is held out.

    Always the same one: what one run, of whatever seed, has learnt the labels of, another is not to be judged by.
    """
    rows = len(train.numbers)
    if rows < 2:
        raise ValueError(f"a training split of {rows} rows cannot be divided; name a validation_split")
    order = randomness.permutation(randomness.key(0, "hold-out"), 0, rows)
    held = max(rows // HOLD_OUT, 1)
    return train.select(np.sort(order[held:])), train.select(np.sort(order[:held]))


def _image_column(table: datasets.Dataset, settings: DataSettings) -> str:
    if settings.image_column is not None:
        feature = table.features.get(settings.image_column)
        if feature is not None and not _may_hold_images(feature):
            said = f"column {settings.image_column!r} of {settings.source} holds no images but {feature}"
            raise SettingError({"image_column": said})
        return settings.image_column
    found = [name for name, feature in table.features.items() if _holds_images(feature)]
    if len(found) != 1:
        which = f" ({', '.join(found)})" if found else ""
        said = f"{settings.source} has {len(found) or 'no'} image columns{which} among {', '.join(table.column_names)}"
        raise SettingError({"image_column": f"{said}; name one with image_column"})
    return found[0]


def _holds_images(feature: Any) -> bool:
    """Image columns, and the structs of bytes and path that they are stored as."""
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _may_hold_images(feature: Any) -> bool:
    """Besides, what a recipe may name as an image column: encoded bytes, or paths."""
    return _holds_images(feature) or getattr(feature, "dtype", None) in ("binary", "large_binary", "string")


def _label_column(table: datasets.Dataset, settings: DataSettings, *, required: bool) -> str | None:
    if settings.label_column is not None:
        return settings.label_column
    found = [name for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(found) == 1:
        return found[0]
    if required:
        said = f"{settings.source} has {len(found) or 'no'} class-label columns, but labels are needed"
        named = ", ".join(table.column_names)
        raise SettingError({"label_column": f"{said}; name one of {named} with label_column"})
    return None


def _classes(table: datasets.Dataset, whole: datasets.Dataset, column: str) -> Classes:
    """The classes of a label column: a ClassLabel's own, or those that integers or strings show.

    Args:
        table: the rows to train on, which need a label each.
        whole: the split that they are of.
        column: of the labels.

    Raises:
        SettingError: for a column that holds no labels.
    """
    feature = table.features.get(column)
    if isinstance(feature, datasets.ClassLabel):
        return Classes(list(feature.names), strings=False)
    if feature is None or len(table) == 0:
        return Classes([], strings=False)  # refused for what it is when the rows are opened
    unfit = f"column {column!r} holds no labels: expected integers or strings, found {feature}"
    if getattr(feature, "dtype", None) is None or _holds_images(feature):
        raise SettingError({"label_column": unfit})
    values = [value for value in whole.unique(column) if value is not None]
    if None in table.unique(column):
        said = f"column {column!r} has rows without a label: label them, or leave them out of the split"
        raise SettingError({"label_column": said})
    if all(isinstance(value, str) for value in values):
        return Classes(sorted(values), strings=True)
    if not all(isinstance(value, int) for value in values):
        raise SettingError({"label_column": unfit})
    if max(values) >= MOST_CLASSES:
        said = f"column {column!r} holds no class numbers: they reach {max(values)}, with {len(values)} different ones"
        raise SettingError({"label_column": f"{said}; number the classes from 0"})
    return Classes([str(number) for number in range(max(values) + 1)], strings=False)


def _rows(part: Part, image: str, label: str | None, classes: Classes | None, name: str, split: str) -> ImageRows:
    table = part.table
    for setting, column in (("image_column", image), ("label_column", label)):
        if column is not None and column not in table.column_names:
            near = difflib.get_close_matches(column, table.column_names, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            said = f"{name} has no column {column!r} among {', '.join(table.column_names)}{hint}"
            raise SettingError({setting: said})
    if len(table) == 0:
        raise ValueError(f"{name} is empty: it has no rows")
    return ImageRows(part, image, label, classes, name, split)

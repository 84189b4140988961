"""Open a data set: embedded, a folder of images, Parquet, webdataset, or an id on the Hub."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from datasets.exceptions import DatasetGenerationError

from mpp import randomness
from mpp.data import synthetic
from mpp.data.arrow_table import ArrowTable, Selection, classes_of, image_column, label_column
from mpp.data.dead_leaves import VARIANTS
from mpp.data.image_folder import image_splits
from mpp.data.settings import DataSettings
from mpp.data.table import ImageTable
from mpp.redact import reason_of
from mpp.settings import SettingError

HOLD_OUT = 10
"""One row in this many is held out of a data set that has a single split."""


class Splits(NamedTuple):
    """The rows to train on and the held-out rows."""

    train: ImageTable
    validation: ImageTable


def open_splits(
    settings: DataSettings,
    seed: int,
    *,
    labelled: bool = False,
    held_out: tuple[str, ...] = ("validation", "test"),
) -> Splits:
    """Open the training and the validation split of a data set.

    A split that hides its labels while train has some, like ImageNet's test split, is not used for validation. This
    does not depend on `labelled`: runs with and without labels train on the same images.

    Args:
        settings: the data set, its splits and columns.
        seed: of the choice of training images, if `settings.images` limits their number.
        labelled: whether labels are needed.
        held_out: names of the validation split, in order of preference, if `settings.validation_split` is None.

    Raises:
        SettingError: if a source, split, column or label is missing, or a split is empty.
    """
    with settings.blamed("source"):
        return _open_splits(settings, seed, labelled, held_out)


def _open_splits(settings: DataSettings, seed: int, labelled: bool, held_out: tuple[str, ...]) -> Splits:
    """Raises ValueError, and SettingError by the names of settings."""
    tables = _tables(settings)
    train = _slice(tables, settings.split, "split")
    image = image_column(train.table, settings)
    # Labels are not read, and may be invalid, unless someone needs them.
    label = label_column(train.table, settings, required=labelled) if labelled or settings.label_column else None
    used = {part.split("[")[0].strip() for part in settings.split.split("+")}
    # Of the whole split: the training rows need not contain every class.
    whole = datasets.concatenate_datasets([tables[name] for name in sorted(used)])
    classes = classes_of(train.table, whole, label) if label else None
    free = [name for name in held_out if name in tables and name not in used]
    shown = label or label_column(train.table, settings, required=False)
    if shown is not None and (label is not None or _has_classes(train.table, shown)):
        free = [name for name in free if not _hides_labels(tables[name], shown)]
    other = settings.validation_split or next(iter(free), None)
    if other is not None:
        validation = _slice(tables, other, "validation_split")
    else:
        train, validation = _held_out(train)
    if settings.images is not None:
        rows = len(train.split_rows)
        if settings.images > rows:
            message = f"data.images {settings.images} are more than the {rows} of {settings.source}"
            raise SettingError({"images": message})
        order = randomness.permutation(randomness.key(seed, "images"), 0, rows)
        train = train.select(np.sort(order[: settings.images]))
    held = other or f"one in {HOLD_OUT} of {settings.split}"
    return Splits(
        ArrowTable(train, image, label, classes, name=f"{settings.source}, training split", split=settings.split),
        ArrowTable(validation, image, label, classes, name=f"{settings.source}, validation split", split=held),
    )


def _tables(settings: DataSettings) -> datasets.DatasetDict:
    """All splits of the source. `datasets` prepares them once, and caches them."""
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
        # `datasets` passes on whatever its readers raise: the source cannot be read.
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else None  # its own message is empty
        reason = reason_of(cause if isinstance(cause, Exception) else error).rstrip(".")
        raise ValueError(
            f"data.source {settings.source!r} cannot be opened: {reason}. "
            "It can be embedded or embedded:b, a folder of images, a .parquet or .tar file, a folder of them, "
            "or the id of a data set on the Hugging Face Hub (which needs a network)"
        ) from error


def _reader(settings: DataSettings) -> tuple[str, dict[str, Any]]:
    """The arguments of `datasets.load_dataset`: a reader or a path, and keyword arguments."""
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


def _slice(tables: datasets.DatasetDict, spec: str, setting: str) -> Selection:
    """Select a split, or rows of it such as `train[:10%]`."""
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
    split_rows = np.concatenate([np.arange(rows.start, rows.stop) for rows in ranges])
    first = dict(zip(sizes, np.cumsum([0, *sizes.values()]), strict=False))
    source_rows = split_rows + np.repeat([first[p.splitname] for p in parts], [len(rows) for rows in ranges])
    slices = [tables[p.splitname].select(rows) for p, rows in zip(parts, ranges, strict=True)]
    return Selection(slices[0] if len(parts) == 1 else datasets.concatenate_datasets(slices), split_rows, source_rows)


def _hides_labels(table: datasets.Dataset, column: str) -> bool:
    """Whether a split has no labels: the column is missing, or all of it is null or −1."""
    if column not in table.column_names:
        return True
    kind = str(getattr(table.features[column], "dtype", ""))
    if not kind.startswith(("int", "uint", "string", "large_string", "null")):  # an error is raised later
        return False
    return len(table) > 0 and set(table.unique(column)) <= {None, -1}


def _has_classes(table: datasets.Dataset, column: str) -> bool:
    """Whether there are at least two classes; all images of a single folder have the folder's name as label."""
    return len(set(table.unique(column)) - {None, -1}) > 1


def _held_out(train: Selection) -> tuple[Selection, Selection]:
    """Divide a data set with a single split: a tenth is held out for validation.

    The division does not depend on the seed, so that no run is evaluated on images that another was trained on.
    """
    rows = len(train.split_rows)
    if rows < 2:
        raise ValueError(f"a training split of {rows} rows cannot be divided; name a validation_split")
    order = randomness.permutation(randomness.key(0, "hold-out"), 0, rows)
    held = max(rows // HOLD_OUT, 1)
    return train.select(np.sort(order[held:])), train.select(np.sort(order[:held]))

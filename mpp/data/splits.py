"""The training and the validation split of a data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import datasets
import numpy as np

from mpp import randomness
from mpp.data.arrow_table import ArrowTable, Selection, class_names_of, image_column, label_column
from mpp.data.class_choice import ClassChoice
from mpp.data.inventory import counted
from mpp.data.label_subsets import reserve
from mpp.data.settings import DataSettings
from mpp.data.sources import Source, read_source
from mpp.data.table import ImageTable
from mpp.settings import SettingError

HOLD_OUT = 10
"""One row in this many is held out of a data set that has a single split."""


@dataclass(frozen=True)
class Splits:
    """The rows to train on and the held-out rows, which it can be unpacked into."""

    train: ImageTable
    validation: ImageTable
    summary: str
    """What was found, what is ignored, and what is held out, in one line."""

    def __iter__(self) -> Iterator[ImageTable]:
        return iter((self.train, self.validation))


def open_splits(
    settings: DataSettings, seed: int, *, labelled: bool = False, held_out: tuple[str, ...] = ("validation", "test")
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
        found = read_source(settings)
        tables = found.tables
        train = _slice(tables, settings.split, "split")
        image = image_column(train.table, settings)
        # Labels are not read, and may be invalid, unless someone needs them.
        needed = labelled or _chooses_by_labels(settings)
        label = _label_column(train.table, image, settings, required=True) if needed else None
        used = sorted({part.split("[")[0].strip() for part in settings.split.split("+")})
        # Of the whole split: the training rows need not contain every class.
        whole = datasets.concatenate_datasets([tables[name] for name in used])
        choice = _choice(train, whole, label, settings, labelled=labelled)
        free = [name for name in held_out if name in tables and name not in used]
        shown = label or _label_column(train.table, image, settings, required=False)
        # All images of a single folder have the folder's name as label: that is no class.
        if shown is not None and (label is not None or len(_labels(train.table, shown)) > 1):
            free = [name for name in free if not _hides_labels(tables[name], shown)]
        of_train, of_validation = f"{settings.source}, training split", f"{settings.source}, validation split"
        notes = [choice.described(train, of_train)] if choice and choice.chosen else []
        other = settings.validation_split or next(iter(free), None)
        if other is not None:
            validation, called = _slice(tables, other, "validation_split"), other
        else:
            train, validation = _divide(train)
            other, called = f"one in {HOLD_OUT} of {settings.split}", "a tenth"
        if settings.reserved:
            # Before classes are chosen: the reserved images of a class are the same whichever others are chosen.
            assert choice is not None
            train, reserved = map(train.select, reserve(choice.numbers(train, of_train), settings.reserved))
            if settings.evaluate_on == "reserved":
                validation, other = reserved, f"reserved {100 * settings.reserved:g}% of {settings.split}"
                called = other
            else:
                notes.append(f"reserved {len(choice.of(reserved, of_train).split_rows):,}")
        if choice is not None and choice.chosen is not None:
            train, validation = choice.of(train, of_train), choice.of(validation, of_validation)
            choice.check_all_in(train, of_train)
        if settings.images is not None:
            train = _choose(train, settings.images, settings.source, seed)
        if (most := settings.validation_images) is not None and most < (rows := len(validation.split_rows)):
            validation = _choose_validation(validation, most)
            called = f"chosen from {rows:,}, {called}"
        return Splits(
            _table(train, image, choice, of_train, settings.split),
            _table(validation, image, choice, of_validation, other),
            _summary(found, settings, notes, len(train.split_rows), len(validation.split_rows), called),
        )


def _table(rows: Selection, image: str, choice: ClassChoice | None, name: str, split: str) -> ArrowTable:
    """The rows as a table of images, with labels if there is a choice of classes."""
    if choice is None:
        return ArrowTable(rows, image, None, None, name=name, split=split)
    return choice.renumber(ArrowTable(rows, image, choice.column, choice.names, name=name, split=split))


def _chooses_by_labels(settings: DataSettings) -> bool:
    """Whether the labels decide which images are taken, or are asked for by the name of their column."""
    return settings.label_column is not None or settings.classes is not None or settings.reserved > 0


def _choice(
    rows: Selection, whole: datasets.Dataset, label: str | None, settings: DataSettings, *, labelled: bool
) -> ClassChoice | None:
    """The classes to take, checked; None without labels."""
    if label is None:
        return None
    choice = ClassChoice(label, class_names_of(rows.table, whole, label), settings.classes)
    if label in rows.table.column_names:  # else `ArrowTable` raises the error
        choice.check(settings.source)
    if labelled and settings.classes is not None and len(settings.classes) < 2:
        alone = ", ".join(map(str, settings.classes))
        raise SettingError({"classes": f"classes names {alone} alone, and classification needs two"})
    return choice


def open_table(settings: DataSettings) -> ImageTable:
    """All rows of `settings.split`, none held out, with their labels if there are any.

    Raises:
        SettingError: if a source, split or column is missing, or the split is empty.
    """
    with settings.blamed("source"):
        rows = _slice(read_source(settings).tables, settings.split, "split")
        image = image_column(rows.table, settings)
        label = _label_column(rows.table, image, settings, required=settings.classes is not None)
        asked = settings.label_column is not None or settings.classes is not None
        if label is not None and not asked and len(_labels(rows.table, label)) < 2:
            label = None  # the name of a single folder
        name = f"{settings.source}, {settings.split}"
        choice = _choice(rows, rows.table, label, settings, labelled=False)
        if choice is not None and choice.chosen is not None:
            rows = choice.of(rows, name)
            choice.check_all_in(rows, name)
        if settings.images is not None:
            rows = _choose(rows, settings.images, settings.source, 0)
        return _table(rows, image, choice, name, settings.split)


def _summary(found: Source, settings: DataSettings, notes: list[str], train: int, held_out: int, called: str) -> str:
    """`found 2,509 images in 7 folders (jpg, png), ignored 12 other files, held out 251 (a tenth)`."""
    sizes = {name: len(table) for name, table in found.tables.items()}
    parts = [f"found {counted(sum(sizes.values()), 'image')}{found.found}"]
    if len(sizes) > 1:
        parts[0] += f": {', '.join(f'{rows:,} in {name}' for name, rows in sizes.items())}"
    if found.ignored:
        parts.append(f"ignored {' and '.join(found.ignored)}")
    parts += notes
    if settings.images is not None or settings.split != "train" or settings.reserved:
        parts.append(f"train on {train:,} of {settings.split}")
    return ", ".join([*parts, f"held out {held_out:,} ({called})"])


def _slice(tables: datasets.DatasetDict, spec: str, setting: str) -> Selection:
    """Select a split, or rows of it such as `train[:10%]`."""
    sizes = {name: len(table) for name, table in tables.items()}
    try:
        parts = datasets.ReadInstruction.from_spec(spec).to_absolute(sizes)
    except Exception as error:
        there = ", ".join(f"{name} ({size} rows)" for name, size in sizes.items())
        reason = str(error).strip() or type(error).__name__
        message = f"data.{setting} {spec!r} cannot be taken: {reason}; there are {there}"
        raise SettingError({setting: message}) from error
    first = dict(zip(sizes, np.cumsum([0, *sizes.values()]), strict=False))
    ranges = [range(p.from_ or 0, sizes[p.splitname] if p.to is None else p.to) for p in parts]
    slices = [tables[part.splitname].select(rows) for part, rows in zip(parts, ranges, strict=True)]
    source_rows = [np.asarray(rows) + first[part.splitname] for part, rows in zip(parts, ranges, strict=True)]
    return Selection(datasets.concatenate_datasets(slices), np.concatenate(ranges), np.concatenate(source_rows))


def _label_column(table: datasets.Dataset, image: str, settings: DataSettings, *, required: bool) -> str | None:
    """As `label_column`, which here never proposes the images."""
    others = table.remove_columns([image]) if image in table.column_names else table
    if required and settings.label_column is None and not others.column_names:
        message = (
            f"{settings.source} has no column besides the images ({image}), but labels are needed: put the images into "
            "one folder a class, or give a table of paths and labels as data.source"
        )
        raise SettingError({"label_column": message})
    return label_column(others, settings, required=required)


def _labels(table: datasets.Dataset, column: str) -> set[object]:
    """The labels in a column, without null and −1."""
    return set(table.unique(column)) - {None, -1}


def _hides_labels(table: datasets.Dataset, column: str) -> bool:
    """Whether a split has no labels: the column is missing, or all of it is null or −1."""
    if column not in table.column_names:
        return True
    kind = str(getattr(table.features[column], "dtype", ""))
    if not kind.startswith(("int", "uint", "string", "large_string", "null")):  # an error is raised later
        return False
    return len(table) > 0 and not _labels(table, column)


def _divide(train: Selection) -> tuple[Selection, Selection]:
    """Divide a data set with a single split: a tenth is held out for validation.

    The division does not depend on the seed, so that no run is evaluated on images that another was trained on.
    """
    rows = len(train.split_rows)
    if rows < 2:
        raise ValueError(f"a training split of {rows} rows cannot be divided; name a validation_split")
    order = randomness.permutation(randomness.key(0, "hold-out"), 0, rows)
    held = max(rows // HOLD_OUT, 1)
    return train.select(np.sort(order[held:])), train.select(np.sort(order[:held]))


def _choose_validation(validation: Selection, images: int) -> Selection:
    """A choice of held-out rows, the same for every seed, so that all runs are evaluated on the same images."""
    order = randomness.permutation(randomness.key(0, "validation images"), 0, len(validation.split_rows))
    return validation.select(np.sort(order[:images]))


def _choose(train: Selection, images: int, source: str, seed: int) -> Selection:
    """A seeded choice of rows."""
    rows = len(train.split_rows)
    if images > rows:
        raise SettingError({"images": f"data.images {images} are more than the {rows} of {source}"})
    order = randomness.permutation(randomness.key(seed, "images"), 0, rows)
    return train.select(np.sort(order[:images]))

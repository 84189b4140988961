"""What is said about the data at the start of a command, in the main process."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path, PurePath

from accelerate import Accelerator

from mpp.data.inventory import counted, kind_of
from mpp.data.settings import PATH_TABLES, DataSettings
from mpp.data.splits import Splits
from mpp.data.survey import ColourHistogram, Survey
from mpp.data.table import ImageTable

SHOWN = 6
"""Classes that are named."""
FEWEST = 10
"""Images below which a command that holds out a tenth is refused."""
DATE = re.compile(r"(19|20)\d\d([-_. ]?\d\d){0,2}")
"""Names of folders that are dates, such as 2024, 2024-01 and 20240131, and hardly classes."""
NEARLY_CONSTANT = 0.05
"""Nats of the colours of images in which there is nothing to predict."""


def print_data(splits: Splits, settings: DataSettings, accelerator: Accelerator) -> None:
    """Print what was found and held out, and what the headers of some images say."""
    if accelerator.is_main_process:
        survey = Survey(splits.train, settings)
        notes = [*classes_found(splits.train, settings), *survey.notes]
        print("\n".join([splits.summary, *map(_filled, notes)]), flush=True)
        for warning in survey.warnings:
            warn(warning)
        names = splits.train.class_names or ()
        if has_class_folders(splits.train, settings) and all(map(DATE.fullmatch, names)):
            warn("the folders are called like dates: are these classes? To use other labels give a table of paths and "
                 "labels as data.source")  # fmt: skip


def check_enough(splits: Splits, settings: DataSettings) -> None:
    """Refuse a handful of images of which a tenth is held out: there is nothing to train on, nor to measure with.

    Raises:
        SettingError: with the setting that names held-out images, and so allows it.
    """
    images = len(splits.train) + len(splits.validation)
    if images < FEWEST and settings.validation_split is None and settings.images is None:
        raise settings.error(
            source=f"{settings.source} holds {counted(images, 'image')}, of which {len(splits.validation)} would be "
            f"held out: give at least {FEWEST}. To try something on these, name what to hold out, for example "
            "data.validation_split=train"
        )


def warn_of_test(splits: Splits, accelerator: Accelerator) -> None:
    """Warn of a test split that is too small for an accuracy, or that lacks classes."""
    test = splits.validation
    if not accelerator.is_main_process or test.labels is None:
        return
    if len(test) < FEWEST:
        warn(f"the test split has {counted(len(test), 'image')}: an accuracy on so few says hardly anything. Give more "
             "images, or a test split of its own (data.validation_split)")  # fmt: skip
    names, there = splits.train.class_names or [], {*map(int, test.labels)}
    if missing := [name for number, name in enumerate(names) if number not in there]:
        shown = ", ".join(missing[:SHOWN]) + ", …" * (len(missing) > SHOWN)
        warn(f"the test split has no image of {counted(len(missing), 'class', 'classes')}: {shown}")


def classes_found(table: ImageTable, settings: DataSettings) -> Iterator[str]:
    """A line on the classes of images in class folders, or of a table of paths: a folder need not mean a class."""
    names = table.class_names
    if table.labels is None or not names:
        return
    shown = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
    if kind_of(Path(settings.source)) in PATH_TABLES:
        yield f"{counted(len(names), 'class', 'classes')} in {Path(settings.source).name}: {shown}"
        return
    if has_class_folders(table, settings):
        yield f"{counted(len(names), 'folder')} taken as classes: {shown}"


def has_class_folders(table: ImageTable, settings: DataSettings) -> bool:
    """Whether the classes are guessed: they are the names of the folders that the images lie in, and in no column."""
    names, labels = table.class_names, table.labels
    if labels is None or not names or kind_of(Path(settings.source)) in PATH_TABLES:
        return False
    rows = {0, len(table) // 2, len(table) - 1}
    return all(_folder_of(table.where(row).path) == names[labels[row]] for row in rows)


def _folder_of(path: str | None) -> str | None:
    """The name of the folder that a file lies in, in an archive too: `zip://cat/1.png::photos.zip`."""
    return PurePath(path.split("::")[0]).parent.name if path else None


def warn_of_constant_colours(colours: ColourHistogram) -> None:
    """Warn if the images have one colour nearly everywhere."""
    if (entropy := colours.entropy) < NEARLY_CONSTANT:
        warn(
            f"nearly all pixels have the same colour ({entropy:.2f} nats): there is hardly anything to predict. 16-bit "
            "images that use fewer bits become black: set data.bits to the number that they use"
        )


def warn(text: str) -> None:
    """Print a warning, which --quiet does not hide."""
    print(_filled(f"warning: {text}"), file=sys.stderr, flush=True)


def _filled(text: str) -> str:
    return textwrap.fill(text, 79, break_long_words=False, break_on_hyphens=False)

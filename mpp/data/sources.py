"""The sources of images: embedded, a file, a folder, or a data set on the Hub."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from datasets.exceptions import DatasetGenerationError

from mpp.data import synthetic
from mpp.data.archive import is_webdataset, read_archive
from mpp.data.arrow_table import holds_images
from mpp.data.dead_leaves import VARIANTS
from mpp.data.hub_access import hub_or_cache
from mpp.data.image_folder import image_splits, unrelated_metadata
from mpp.data.inventory import check_folder, check_source, counted, is_described, kind_of, take_inventory, where_found
from mpp.data.path_table import csv_arguments, with_images
from mpp.data.settings import DataSettings
from mpp.redact import reason_of
from mpp.settings import SettingError


class Source(NamedTuple):
    """A data set, and what was found where it lies."""

    tables: datasets.DatasetDict
    """All splits."""
    found: str = ""
    """In which folders and kinds of files the images were found, to follow their number."""
    ignored: tuple[str, ...] = ()
    """What was found and is not read."""


def read_source(settings: DataSettings) -> Source:
    """All splits of the source, by the first of `READERS` that knows it. `datasets` prepares and caches them.

    Raises:
        ValueError: if there is no such source, or it cannot be opened.
    """
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return next(source for reader in READERS if (source := reader(settings)) is not None)


def _embedded(settings: DataSettings) -> Source | None:
    family, _, variant = settings.source.partition(":")
    if family != "embedded":
        return None
    if (variant or "a") not in VARIANTS:
        known = ", ".join(f"embedded:{v}" for v in VARIANTS)
        raise ValueError(f"data.source {settings.source!r} does not exist; there are {known}")
    return Source(synthetic.load(variant or "a"))


def _file(settings: DataSettings) -> Source | None:
    path = Path(settings.source).expanduser()
    if not path.is_file():
        return None
    check_source(settings.source)
    with _opening(settings):
        kind = kind_of(path)
        if kind == "zip" or (kind == "tar" and not is_webdataset(path)):
            tables, images, others = read_archive(path)
            return Source(tables, where_found(images), (counted(others, "other file"),) if others else ())
        return Source(_tables_of(path, settings))


def _tables_of(path: Path, settings: DataSettings) -> datasets.DatasetDict:
    kind = str(kind_of(path))
    arguments = csv_arguments(path) if kind == "csv" else {}
    reader = "webdataset" if kind == "tar" else kind
    tables = datasets.load_dataset(reader, data_files={"train": str(path)}, **arguments)
    if kind == "csv" or (kind == "parquet" and not any(map(holds_images, tables["train"].features.values()))):
        column = tables["train"].features.get(settings.image_column or "")
        if getattr(column, "dtype", None) not in ("binary", "large_binary"):
            return with_images(tables["train"], path, settings)
    if settings.image_folder is not None:
        message = f"image_folder is for a table of paths, and {path.name} holds the images themselves; leave it out"
        raise SettingError({"image_folder": message})
    return tables


def _folder(settings: DataSettings) -> Source | None:
    path = Path(settings.source).expanduser()
    if not path.is_dir():
        return None
    path = Path(os.path.abspath(path))  # noqa: PTH100  as `datasets` does: without `..`, and through links
    found = take_inventory(path)
    check_folder(path, found, settings.source)
    with _opening(settings):
        if found.saved == [path]:
            saved = datasets.load_from_disk(str(path))
            return Source(saved if isinstance(saved, datasets.DatasetDict) else datasets.DatasetDict({"train": saved}))
        if settings.subset is not None or is_described(path) or not found.images or found.tables:
            return Source(datasets.load_dataset(str(path), name=settings.subset))
        unrelated = unrelated_metadata(found)
        arguments: dict[str, Any] = {"metadata_filenames": ["-"]} if unrelated else {}
        tables = datasets.load_dataset("imagefolder", data_files=image_splits(path, found), **arguments)
    ignored = [counted(found.others.total(), "other file")] if found.others else []
    ignored += [f"{each.name} (it has no column file_name)" for each in unrelated[:1]]
    if (left := len(found.images) - sum(map(len, tables.values()))) > 0:
        ignored.append(f"{counted(left, 'image')} that {found.metadata[0].name} does not list")
    return Source(tables, where_found(found.images), tuple(ignored))


def _on_hub(settings: DataSettings) -> Source:
    check_source(settings.source)
    with hub_or_cache() as unreachable:
        try:
            with _opening(settings):
                return Source(datasets.load_dataset(settings.source, name=settings.subset, revision=settings.revision))
        except ValueError as error:
            near = difflib.get_close_matches(settings.source, [path.name for path in Path().iterdir()], n=1)
            hint = f"; did you mean the folder ./{near[0]}?" if near else ""
            if unreachable is None:
                raise ValueError(f"{error}{hint}") from error
            raise ValueError(
                f"data.source {settings.source!r} is no file or folder here, and the Hugging Face Hub cannot be "
                f"reached to look for it: {unreachable}{hint}"
            ) from error


READERS: tuple[Callable[[DataSettings], Source | None], ...] = (_embedded, _file, _folder, _on_hub)
"""Each returns a source of its kind, else None."""


@contextmanager
def _opening(settings: DataSettings) -> Iterator[None]:
    """Report whatever a reader raises as a ValueError of one line."""
    try:
        yield
    except SettingError:
        raise
    except Exception as error:  # `datasets` passes on whatever its readers raise
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else None  # its own message is empty
        reason = reason_of(cause if isinstance(cause, Exception) else error).rstrip(".")
        raise ValueError(
            f"data.source {settings.source!r} cannot be opened: {reason}. "
            "It can be embedded, embedded:b or embedded:c, a folder of images, a .csv, .parquet, .zip or .tar file, a "
            "folder of such files, a folder of Dataset.save_to_disk, or the id of a data set on the Hugging Face Hub "
            "(which needs a network)"
        ) from error

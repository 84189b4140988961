"""The sources of images: embedded, a file, a folder, or a data set on the Hub."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError

from mpp.data import synthetic
from mpp.data.dead_leaves import VARIANTS
from mpp.data.image_folder import image_splits
from mpp.data.settings import DataSettings
from mpp.redact import reason_of

FORMATS = {".parquet": "parquet", ".tar": "webdataset", ".arrow": "arrow"}
"""The readers of `datasets` by the suffix of a file."""


def read_source(settings: DataSettings) -> datasets.DatasetDict:
    """All splits of the source, by the first of `READERS` that knows it. `datasets` prepares and caches them.

    Raises:
        ValueError: if there is no such source, or it cannot be opened.
    """
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return next(tables for reader in READERS if (tables := reader(settings)) is not None)


def _embedded(settings: DataSettings) -> datasets.DatasetDict | None:
    family, _, variant = settings.source.partition(":")
    if family != "embedded":
        return None
    if (variant or "a") not in VARIANTS:
        known = ", ".join(f"embedded:{v}" for v in VARIANTS)
        raise ValueError(f"data.source {settings.source!r} does not exist; there are {known}")
    return synthetic.load(variant or "a")


def _file(settings: DataSettings) -> datasets.DatasetDict | None:
    path = Path(settings.source).expanduser()
    if not path.is_file():
        return None
    if path.suffix not in FORMATS:
        raise ValueError(
            f"data.source {settings.source} is a file of another kind than {', '.join(FORMATS)}; "
            "give one of these, or a folder"
        )
    return _load(settings, FORMATS[path.suffix], data_files={"train": str(path)})


def _folder(settings: DataSettings) -> datasets.DatasetDict | None:
    path = Path(settings.source).expanduser()
    if not path.is_dir():
        return None
    if not any(path.iterdir()):
        raise ValueError(f"data.source {settings.source} is an empty folder")
    if settings.subset is None and (splits := image_splits(path)):
        return _load(settings, "imagefolder", data_files=splits)
    return _load(settings, str(path), name=settings.subset)


def _on_hub(settings: DataSettings) -> datasets.DatasetDict:
    if settings.source.startswith((".", "/", "~")) or settings.source.count("/") > 1:
        path = Path(settings.source).expanduser()
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ValueError(f"data.source {settings.source} does not exist{hint}")
    return _load(settings, settings.source, name=settings.subset, revision=settings.revision)


READERS: tuple[Callable[[DataSettings], datasets.DatasetDict | None], ...] = (_embedded, _file, _folder, _on_hub)
"""Each returns all splits of a source of its kind, else None."""


def _load(settings: DataSettings, reader: str, **arguments: Any) -> datasets.DatasetDict:
    try:
        return datasets.load_dataset(reader, **arguments)
    except Exception as error:  # `datasets` passes on whatever its readers raise
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else None  # its own message is empty
        reason = reason_of(cause if isinstance(cause, Exception) else error).rstrip(".")
        raise ValueError(
            f"data.source {settings.source!r} cannot be opened: {reason}. "
            "It can be embedded or embedded:b, a folder of images, a .parquet or .tar file, a folder of them, "
            "or the id of a data set on the Hugging Face Hub (which needs a network)"
        ) from error

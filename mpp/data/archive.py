"""A zip or tar archive of images as a table, with the names of its folders as classes and splits."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import datasets

from mpp.data.image_folder import split_folders
from mpp.data.inventory import IMAGES

PEEK = 1000
"""Files of a tar archive that tell whether it is a webdataset."""


class Archive(NamedTuple):
    """All splits of an archive, and what it holds."""

    tables: datasets.DatasetDict
    images: list[PurePosixPath]
    others: int
    """The number of other files."""


def read_archive(path: Path) -> Archive:
    """Read an archive of images, in the order of the archive. `datasets` caches the bytes of the files.

    Labels are the names of the images' folders, if there are several, all of one depth.

    Raises:
        ValueError: if it holds no images.
    """
    files = list(_names(path))
    names = [name for name in files if name.suffix.lower() in IMAGES]
    if not names:
        raise ValueError(f"{path.name} holds no images")
    tops = split_folders(name.parts for name in names) or {"train": [()]}
    classes = sorted({name.parent.name for name in names})
    labelled = len(classes) > 1 and len({len(name.parts) for name in names}) == 1
    features: dict[str, Any] = {"image": datasets.Image()}
    if labelled:
        features["label"] = datasets.ClassLabel(names=classes)
    stamp = path.stat()
    found = {
        split: datasets.Dataset.from_generator(
            _rows,
            features=datasets.Features(features),
            gen_kwargs={
                "archive": str(path.resolve()),
                "inside": inside,
                "labelled": labelled,
                "stamp": (stamp.st_size, stamp.st_mtime_ns),  # another content is cached anew
            },
            split=datasets.NamedSplit(split),
        )
        for split, inside in tops.items()
    }
    return Archive(datasets.DatasetDict(found), names, len(files) - len(names))  # pyright: ignore


def is_webdataset(path: Path) -> bool:
    """Whether a tar archive has files beside its images that belong to them, as `0001.jpg` and `0001.cls` do."""
    names = list(islice(_names(path), PEEK))
    images = {_key(name) for name in names if name.suffix.lower() in IMAGES}
    return any(name.suffix.lower() not in IMAGES and _key(name) in images for name in names)


def _key(name: PurePosixPath) -> str:
    return str(name.parent / name.name.split(".")[0])


def _names(path: Path) -> Iterator[PurePosixPath]:
    """All files but hidden ones."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
        yield from _shown(names)
        return
    with tarfile.open(path) as archive:
        yield from _shown(entry.name for entry in archive if entry.isfile())


def _shown(names: Any) -> Iterator[PurePosixPath]:
    paths = map(PurePosixPath, names)
    return (path for path in paths if not any(part.startswith((".", "__")) for part in path.parts))


def _rows(archive: str, inside: list[tuple[str, ...]], *, labelled: bool, stamp: Any) -> Iterator[dict[str, Any]]:
    """The rows of one split."""
    for name, content in _contents(Path(archive)):
        if name.suffix.lower() in IMAGES and any(name.parts[: len(top)] == top for top in inside):
            row: dict[str, Any] = {"image": {"bytes": content, "path": str(name)}}
            yield {**row, "label": name.parent.name} if labelled else row


def _contents(path: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not entry.is_dir():
                    for name in _shown([entry.filename]):
                        yield name, archive.read(entry)
        return
    with tarfile.open(path) as archive:
        for entry in archive:
            if entry.isfile() and (file := archive.extractfile(entry)) is not None:
                for name in _shown([entry.name]):
                    yield name, file.read()

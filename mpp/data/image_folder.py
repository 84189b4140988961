"""A folder of images as splits, by the names of its folders.

`datasets` takes every word such as `test` or `train` in a path for a split, even in the name of a file or of a class,
and leaves out whatever has none.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable
from pathlib import Path

from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns
from pyarrow import parquet

from mpp.data.inventory import Inventory

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Splits by the names that their folders may have."""


def image_splits(folder: Path, found: Inventory) -> dict[str, list[str]]:
    """The files of each split of a folder of images, for the reader `imagefolder`.

    Splits are those of the folders' names, if all are names of splits, else those of the files' names, if all have one.
    In any other folder all images are to train on.

    Args:
        folder: absolute, without `..`.
        found: what lies in it.
    """
    by_folders = split_folders(image.relative_to(folder).parts for image in found.images)
    if by_folders is not None:
        return {split: [_all_in(folder, *parts) for parts in inside] for split, inside in by_folders.items()}
    return _by_files(folder, found.images) or {"train": [_all_in(folder)]}


def split_folders(images: Iterable[tuple[str, ...]]) -> dict[str, list[tuple[str, ...]]] | None:
    """The topmost folders of each split, if all folders with images there have names of splits.

    Args:
        images: the parts of each image's path.
    """
    inside, above = set(images), ()
    while True:
        names = {parts[0] for parts in inside if len(parts) > 1}
        loose = any(len(parts) == 1 for parts in inside)
        if len(names) != 1 or loose or names <= SPLITS.keys():
            break
        inside, above = {parts[1:] for parts in inside}, (*above, *names)  # e.g. all of it lies in `images`
    splits: dict[str, list[tuple[str, ...]]] = {}
    for name in sorted(names):
        splits.setdefault(SPLITS.get(name, ""), []).append((*above, name))
    if not names or "" in splits or (loose and len(splits) < 2):  # photos, and a folder of photos of trains
        return None
    return splits


def unrelated_metadata(found: Inventory) -> list[Path]:
    """The files called `metadata`, if none of them has a column of file names by which it belongs to the images."""
    return [] if any(map(_names_files, found.metadata)) else found.metadata


def _names_files(table: Path) -> bool:
    try:
        if table.suffix == ".parquet":
            columns = list(parquet.read_schema(table).names)
        else:
            with table.open(encoding="utf-8-sig") as file:
                first = file.readline()
            columns = list(json.loads(first)) if table.suffix == ".jsonl" else first.strip().split(",")
    except (OSError, ValueError):
        return False
    return any(column.strip('" ').endswith(("file_name", "file_names")) for column in columns)


def _by_files(folder: Path, images: list[Path]) -> dict[str, list[str]] | None:
    """The splits that `datasets` sees in the paths, if no image is left out."""
    try:
        files = DataFilesDict.from_patterns(get_data_patterns(str(folder)), base_path=str(folder))
    except (EmptyDatasetError, FileNotFoundError):
        return None
    taken = {path for paths in files.values() for path in paths}
    if len(files) < 2 or "train" not in files or not {str(image) for image in images} <= taken:
        return None
    return {str(name): [glob.escape(path) for path in paths] for name, paths in files.items()}


def _all_in(folder: Path, *inside: str) -> str:
    return glob.escape(str(folder.joinpath(*inside))) + "/**"

"""A folder of images as splits, by the names of its folders.

`datasets` takes every word such as `test` or `train` in a path for a split, even in the name of a file or of a class,
and leaves out whatever has none.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path

from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Splits by the names that their folders may have."""
IMAGES = frozenset(ImageFolder.EXTENSIONS)
TABLES = frozenset(
    (".parquet", ".arrow", ".tar", ".gz", ".tgz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".rar", ".lance")
)
"""A folder that holds one of these is a data set of another kind."""


def image_splits(folder: Path) -> dict[str, list[str]] | None:
    """The files of each split, for the reader `imagefolder`; None if the folder is another data set.

    Splits are those of the folders' names, if all are names of splits, else those of the files' names, if all have one.
    In any other folder all images are to train on.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100  as `datasets` does: without `..`, and through links
    card = folder / "README.md"
    if card.is_file() and "\nconfigs:" in card.read_text(encoding="utf-8", errors="replace"):
        return None
    found: list[Path] = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        suffixes = {file: Path(file).suffix.lower() for file in files if not file.startswith(".")}
        if TABLES.intersection(suffixes.values()):
            return None
        found += [Path(parent, file) for file, suffix in suffixes.items() if suffix in IMAGES]
    if not found:
        return None
    return _by_folders(folder, found) or _by_files(folder, found) or {"train": [_all_in(folder)]}


def _by_folders(folder: Path, images: list[Path]) -> dict[str, list[str]] | None:
    """The splits of the topmost folders with images, if all their names are those of splits."""
    inside = {image.relative_to(folder).parts for image in images}
    names = {parts[0] for parts in inside if len(parts) > 1}
    loose = any(len(parts) == 1 for parts in inside)
    if len(names) == 1 and not loose and not names <= SPLITS.keys():  # e.g. all of it lies in `images`
        return _by_folders(folder / names.pop(), images)
    splits: dict[str, list[str]] = {}
    for name in sorted(names):
        splits.setdefault(SPLITS.get(name, ""), []).append(_all_in(folder / name))
    if not names or "" in splits or (loose and len(splits) < 2):  # photos, and a folder of photos of trains
        return None
    return splits


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


def _all_in(folder: Path) -> str:
    return glob.escape(str(folder)) + "/**"

"""What lies in a folder, and whether `data.source` can be one: by names alone, without importing anything heavy."""

from __future__ import annotations

import difflib
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

_SUFFIXES = (
    "apng blp bmp bufr bw cur dcx dds dib emf eps fit fits flc fli ftc ftu gbr gif grib icb icns ico iim im j2c j2k "
    "jfif jp2 jpc jpe jpeg jpf jpg jpx mpeg mpg msp pbm pcd pcx pgm png pnm ppm ps psd pxr ras rgb rgba sgi tga tif "
    "tiff vda vst webp wmf xbm xpm"
)
IMAGES = frozenset(f".{name}" for name in _SUFFIXES.split())
"""Suffixes of image files, the same as those of `datasets`."""
TABLES = frozenset(
    (".parquet", ".arrow", ".tar", ".gz", ".tgz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".rar", ".lance")
)
"""A folder that holds one of these is a data set of another kind."""
FILES = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".tsv": "csv",
    ".tar": "tar",
    ".tar.gz": "tar",
    ".tgz": "tar",
    ".zip": "zip",
}
"""The kinds of files that are a data set, by how their names end."""
METADATA = frozenset(("metadata.csv", "metadata.jsonl", "metadata.parquet"))
"""Tables of labels and captions that `datasets` joins to the images of a folder."""
SAVED = ({"dataset_dict.json"}, {"dataset_info.json", "state.json"})
"""Files by which a folder of `DatasetDict.save_to_disk` or `Dataset.save_to_disk` is known."""
ENOUGH = 20_000
"""Files that are listed for the check at the start, which must not take long."""


class Inventory(NamedTuple):
    """The files of a folder and all below it, without hidden ones."""

    images: list[Path]
    tables: list[Path]
    """Data-set files and archives."""
    saved: list[Path]
    """Folders of `Dataset.save_to_disk`."""
    metadata: list[Path]
    """Files called as those of `METADATA`."""
    others: Counter[str]
    """The numbers of all other files, by suffix."""


def take_inventory(folder: Path, most: int | None = None) -> Inventory:
    """List a folder, through links; at most about `most` files."""
    found = Inventory([], [], [], [], Counter())
    seen = 0
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        if is_saved(files) and not (found.saved and Path(parent).is_relative_to(found.saved[-1])):
            found.saved.append(Path(parent))
        for file in files:
            path, suffix = Path(parent, file), Path(file).suffix.lower()
            if file.startswith("."):
                continue
            if file in METADATA:
                found.metadata.append(path)
            elif suffix in IMAGES or suffix in TABLES:
                (found.images if suffix in IMAGES else found.tables).append(path)
            else:
                found.others[suffix[1:]] += 1
        seen += len(files)
        if most is not None and seen >= most:
            break
    return found


def check_source(source: str) -> None:
    """Refuse a path that is not there, or that holds nothing that could be a data set.

    Raises:
        ValueError: with what was found, and what to do.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        check_folder(path, take_inventory(path, ENOUGH), source)
    elif path.exists():
        if kind_of(path) is None:
            kinds = ", ".join(FILES)
            raise ValueError(
                f"data.source {source} is a file of another kind than {kinds}; give one of these, or a folder"
            )
    elif is_path(source, FILES):
        raise ValueError(f"data.source {source} does not exist{did_you_mean(path)}")


def check_folder(folder: Path, found: Inventory, source: str) -> None:
    """Refuse a folder that holds nothing, or several things of which only one could be read.

    Raises:
        ValueError: with what was found, and what to do.
    """
    if is_described(folder) or (folder in found.saved and not found.images):
        return
    kinds = sorted({kind for table in found.tables if (kind := kind_of(table)) is not None})
    if not (found.images or found.tables or found.saved or found.metadata):
        files = [f"{count} {suffix or 'without suffix'}" for suffix, count in found.others.most_common(3)]
        if not files:
            raise ValueError(f"data.source {source} is an empty folder")
        others = ", ".join(files) + (", …" if len(found.others) > 3 else "")
        if "jsonl" in found.others or "json" in found.others or "csv" in found.others:
            return  # a table that `datasets` reads
        raise ValueError(
            f"data.source {source} holds no images: found {counted(sum(found.others.values()), 'file')} ({others})"
        )
    things = [f"{counted(len(found.images), 'image')}" if found.images else ""]
    things += [f"{counted(len(found.saved), 'saved data set')} ({_some(found.saved, folder)})" if found.saved else ""]
    outside = [t for t in found.tables if not any(t.is_relative_to(saved) for saved in found.saved)]
    if outside:
        name = "archive or data file" if len(outside) == 1 else "archives and data files"
        things += [f"{len(outside):,} {name} ({_some(outside, folder)})"]
    things = [thing for thing in things if thing]
    if len(things) > 1 or (len(kinds) > 1 and not found.saved) or len(found.saved) > 1:
        listed = " and ".join(part for part in (", ".join(things[:-1]), things[-1]) if part)
        raise ValueError(
            f"data.source {source} is ambiguous: it holds {listed}, and only one kind can be read. "
            "Give the one that you mean as data.source, or move the others elsewhere"
        )


def is_saved(files: Iterable[str]) -> bool:
    """Whether a folder of these files was written by `save_to_disk`."""
    return any(marks <= set(files) for marks in SAVED)


def is_described(folder: Path) -> bool:
    """Whether the folder's README.md says which files are its data, as repositories of the Hub do."""
    card = folder / "README.md"
    return card.is_file() and "\nconfigs:" in card.read_text(encoding="utf-8", errors="replace")


def kind_of(path: Path) -> str | None:
    """The kind of a data-set file, of the values of `FILES`; None for other files."""
    return next((kind for suffix, kind in FILES.items() if path.name.lower().endswith(suffix)), None)


def is_path(source: str, suffixes: Iterable[str]) -> bool:
    """Whether text that names no file here can only be meant as a path, and not as an id on the Hub."""
    first, slash, _ = source.partition("/")
    return (
        source.startswith((".", "/", "~"))
        or source.count("/") > 1
        or source.lower().endswith(tuple(suffixes))
        or bool(slash and Path(first).is_dir())
    )


def did_you_mean(path: Path) -> str:
    """A hint at the file or folder of the nearest name, at the first folder of a path that is not there."""
    missing = next((each for each in (*reversed(path.parents), path) if not each.exists()), path)
    try:
        there = [entry.name for entry in itertools.islice(missing.parent.iterdir(), 10_000)]
    except OSError:
        return ""
    near = difflib.get_close_matches(missing.name, there, n=1)
    return f"; did you mean {missing.parent / near[0] / path.relative_to(missing)}?" if near else ""


def where_found(images: Sequence[PurePath]) -> str:
    """The folders and kinds of images: ` in 7 folders (jpg, png)`."""
    folders, kinds = {image.parent for image in images}, Counter(image.suffix.lower()[1:] for image in images)
    return f" in {counted(len(folders), 'folder')} ({', '.join(kind for kind, _ in kinds.most_common())})"


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 image`, `2,509 images`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {plural or noun + 's'}"


def _some(paths: list[Path], folder: Path) -> str:
    names = [str(path.relative_to(folder)) for path in sorted(paths)[:3]]
    return ", ".join(names) + (", …" if len(paths) > 3 else "")

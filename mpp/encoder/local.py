"""Sources of weights on this machine, by the names of their files, without importing anything heavy."""

from __future__ import annotations

import re
from pathlib import Path

from mpp.data.inventory import did_you_mean, is_path

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""The files of weights in an exported folder; the second is a pickle."""
PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pth.tar")
SUFFIXES = (".safetensors", *PICKLES)
"""Of files of weights alone."""


def expanded(source: str | Path) -> str:
    """A path with the home folder for a tilde; other sources are unchanged."""
    return str(Path(source).expanduser()) if str(source).startswith("~") else str(source)


def exported_folder(source: str | Path, allow_pickle: bool = False) -> Path | None:
    """The exported folder: the path itself, or the `encoder/` of a run; None if it is neither."""
    for folder in (Path(source), Path(source) / "encoder"):
        for name in WEIGHTS if allow_pickle else WEIGHTS[:1]:
            if (folder / "config.json").is_file() and (folder / name).is_file():
                return folder
    return None


def is_hub_id(source: str) -> bool:
    """Whether text that names no file here has the form `USER/NAME` or `USER/NAME@REVISION`."""
    matches = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?", source) is not None
    return matches and not Path(source.split("/")[0]).is_dir()  # runs/mine that is not there is a slip of the pen


def check_source(source: str, *, allow_pickle: bool = False) -> None:
    """Refuse a path that is not there, or that holds no weights; names of timm and ids on the Hub are not checked.

    Raises:
        ValueError: with what was found, and what to do.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if exported_folder(path, allow_pickle) is None:
            raise ValueError(
                f"{source} holds no encoder: expected config.json and model.safetensors in it or in its encoder/ folder"
            )
    elif path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise ValueError(f"{source} is no file of weights; expected one of {', '.join(SUFFIXES)}")
    elif not source.startswith("timm:") and is_path(source.partition("@")[0], SUFFIXES) and not is_hub_id(source):
        advice = "; give a run, an exported encoder folder, a file of weights, USER/NAME on the Hub, or timm:NAME"
        raise ValueError(f"encoder source {source!r} does not exist{did_you_mean(path) or advice}")

"""The folder of a run: only one process at a time may write to it, and an older run can be moved aside."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import re
import time
import weakref
from pathlib import Path

LOCK = ".lock"
PATIENCE = 2.0
"""Seconds to wait for the lock: a process that was just killed still exists for a moment."""
RUN_FILES = {"recipe.yaml", "metrics.jsonl", "checkpoints", "encoder", "results.json"}
"""A folder with one of these is a run's."""


class FolderLock:
    """An exclusive lock on a run's folder, held for as long as this object lives.

    A folder that the lock created is removed with it if nothing was written there: a start that fails leaves no trace.
    """

    def __init__(self, folder: Path, command: str | None = None, patience: float = PATIENCE) -> None:
        """Lock the folder, and create it if necessary; wait `patience` seconds for another process.

        Raises ValueError if another process still has the lock, the folder cannot be written to, or it holds the output
        of another command than `command`.
        """
        if command is not None:
            refuse_other_output(folder, command)
        created = [each for each in (folder, *folder.parents) if not each.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / LOCK).open("a+", encoding="utf-8")
        except OSError as error:
            raise ValueError(f"output_dir {folder} cannot be written to: {error.strerror}") from error
        deadline = time.monotonic() + patience
        while not self._acquire():
            if time.monotonic() > deadline:
                self._file.seek(0)
                raise ValueError(
                    f"{folder} is in use by another run (process {self._file.read().strip() or 'unknown'}): wait until "
                    "it has ended (a run that was asked to stop is still saving), or choose another output_dir"
                )
            time.sleep(0.1)
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()
        if created:
            weakref.finalize(self, _remove_empty, created, os.getpid())

    def _acquire(self) -> bool:
        try:
            # A record lock: unlike flock's, loader processes that outlive a killed run do not inherit it.
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path = Path(self._file.name)
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(self._file.fileno())):
                path.parent.mkdir(parents=True, exist_ok=True)  # the process that had the lock failed, and removed it
                self._file = path.open("a+", encoding="utf-8")
                return False
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise ValueError(f"{self._file.name} cannot be locked: {error.strerror}") from error
            return False
        return True


def _remove_empty(folders: list[Path], process: int) -> None:
    """Remove a run's folder and those above it, innermost first, if there is nothing in them but the lock.

    Only the process that created them does: its forks inherit the lock object, but not the lock.
    """
    with contextlib.suppress(OSError):
        if os.getpid() == process and [entry.name for entry in folders[0].iterdir()] == [LOCK]:
            (folders[0] / LOCK).unlink()
            for folder in folders:
                folder.rmdir()


def foreign_files(folder: Path) -> list[str]:
    """The names in a folder that no run has written; hidden files and logs do not count."""
    if not folder.is_dir() or (folder / "recipe.yaml").exists():
        return []
    names = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".") and entry.suffix != ".log"}
    return sorted(names - {"checkpoints", "encoder", "log.txt", "metrics.jsonl", "reconstructions"})


def refuse_other_output(folder: Path, command: str) -> None:
    """Refuse a folder that holds the output of another command, whose files would be overwritten or mixed up.

    Raises:
        ValueError: with what is in it.
    """
    try:
        text = (folder / "recipe.yaml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    found = re.search(r"^command: *(\w+)", text, re.MULTILINE)
    if found is None:
        raise ValueError(f"{folder / 'recipe.yaml'} is no recipe of mpp: choose another output_dir for mpp {command}")
    if found[1] == command:
        return
    files = sorted(entry.name for entry in folder.iterdir() if entry.name != LOCK)
    listed = ", ".join(files[:4]) + ", …" * (len(files) > 4)
    raise ValueError(f"{folder} holds the output of mpp {found[1]} ({listed}): choose another output_dir for "
                     f"mpp {command}")  # fmt: skip


def move_aside(folder: Path) -> Path | None:
    """Move a run, except its lock, to a new numbered folder beside it; None if there is nothing to move.

    Raises:
        ValueError: if the folder holds files, but no run.
    """
    folder = folder.resolve()
    entries = [entry for entry in folder.iterdir() if entry.name != LOCK]
    if not entries:
        return None
    if not RUN_FILES & {entry.name for entry in entries}:
        raise ValueError(
            f"checkpoint.resume=false would move {folder} aside, but it holds files of no run, e.g. "
            f"{min(entry.name for entry in entries)}; choose another output_dir"
        )
    numbered = (folder.with_name(f"{folder.name}.{number}") for number in itertools.count(1))
    aside = next(each for each in numbered if not each.exists())
    aside.mkdir()
    for entry in entries:
        entry.rename(aside / entry.name)
    return aside

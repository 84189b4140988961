"""The folder of a run: only one process at a time may write to it, and an older run can be moved aside."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

LOCK = ".lock"
PATIENCE = 2.0
"""Seconds to wait for the lock: a process that was just killed takes a moment to vanish."""
RUN_FILES = {"recipe.yaml", "metrics.jsonl", "checkpoints", "encoder", "results.json"}
"""A folder with one of these holds a run."""


class FolderLock:
    """An exclusive lock on a run's folder, held for as long as this object lives."""

    def __init__(self, folder: Path, patience: float = PATIENCE) -> None:
        """Lock the folder, and create it if necessary.

        Args:
            folder: of the run.
            patience: seconds to wait for another process.

        Raises:
            ValueError: if another process holds the lock, or the folder cannot be written to.
        """
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

    def _acquire(self) -> bool:
        try:
            # A record lock: unlike flock's, loader processes that outlive a killed run do not inherit it.
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise ValueError(f"{self._file.name} cannot be locked: {error.strerror}") from error
            return False
        return True


def move_aside(folder: Path) -> Path | None:
    """Move a run, except its lock, to a new numbered folder beside it.

    Returns:
        The new folder, or None if there was nothing to move.

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
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    aside.mkdir()
    for entry in entries:
        entry.rename(aside / entry.name)
    return aside

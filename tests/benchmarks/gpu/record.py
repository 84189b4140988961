"""The results of a piece: one JSON file, written anew after every case."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

BEGINNING = "beginning"
"""In place of a case, where a piece failed before its first one."""


@dataclass
class Record:
    """What is known of a piece."""

    piece: str
    rehearsal: bool
    complete: bool = False
    """Every case has a result, a failure, or a reason not to run."""
    command: str = ""
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    """Of all calls together."""
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By case. A result that breaks a promise has `ok: false`."""
    failures: dict[str, str] = field(default_factory=dict)
    """The traceback, by case."""
    not_run: dict[str, str] = field(default_factory=dict)
    """The reason, by case."""
    left: list[str] = field(default_factory=list)
    """Cases for another call."""
    running: str = ""
    """The case that is measured; one that was killed is named here."""

    @classmethod
    def read(cls, folder: Path, piece: str, *, rehearsal: bool) -> Record:
        """The record on disk, or an empty one."""
        path = folder / f"{piece}.json"
        return cls(**json.loads(path.read_text())) if path.is_file() else cls(piece, rehearsal)

    def write(self, folder: Path) -> None:
        """Replace the file in one step."""
        draft = folder / f".{self.piece}.draft"
        draft.write_text(json.dumps(asdict(self), indent=2) + "\n")
        draft.replace(folder / f"{self.piece}.json")

    def is_done(self, case: str, *, retry: bool) -> bool:
        """Whether a case needs no further call."""
        if retry and (case in self.failures or not self.results.get(case, {}).get("ok", True)):
            return False
        return case in self.results or case in self.failures or case in self.not_run

    @property
    def failed(self) -> list[str]:
        """Cases that failed, or whose result breaks a promise."""
        return [*self.failures, *(case for case, result in self.results.items() if not result.get("ok", True))]

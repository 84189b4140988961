"""Saving and finding the state of a run: atomic, flushed, checked by SHA-256, nothing pickled.

A checkpoint is a folder `step-000001200/` of `weights.safetensors`, `optimizer.safetensors`, `state.json` and a
`manifest.json` that lists their sizes and hashes. It is written under another name, flushed to the disk, and renamed:
whenever the machine stops, the folder is complete or not there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mpp.files import flush, sha256

WEIGHTS, OPTIMIZER, STATE, MANIFEST = "weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
DRAFT = ".draft-"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none can be read."""


class Checkpoint(NamedTuple):
    """A checked checkpoint on disk."""

    folder: Path
    step: int
    state: dict[str, Any]

    def load_into(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Load weights and optimiser, bit for bit."""
        module.load_state_dict(load_file(self.folder / WEIGHTS))
        optimizer.load_state_dict(_with_tensors(self.state["optimizer"], load_file(self.folder / OPTIMIZER)))


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run."""

    folder: Path
    keep: int
    """How many of the newest stay on disk."""
    pinned: int | None = None
    """A step whose checkpoint stays on disk as well."""

    def save(self, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> Path:
        """Write the checkpoint of a step, then remove the oldest ones. A CheckpointError leaves all as they are."""
        draft, final = self.folder / f"{DRAFT}{step:09d}", self.folder / f"step-{step:09d}"
        tensors: dict[str, Tensor] = {}
        state = {**state, "step": step, "optimizer": _without_tensors(optimizer.state_dict(), tensors, "optimizer")}
        try:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            save_file({name: _plain(value) for name, value in module.state_dict().items()}, draft / WEIGHTS)
            save_file(tensors, draft / OPTIMIZER)
            (draft / STATE).write_text(json.dumps(state))
            names = (WEIGHTS, OPTIMIZER, STATE)
            manifest = {n: {"bytes": (draft / n).stat().st_size, "sha256": sha256(draft / n)} for n in names}
            (draft / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
            for name in (*names, MANIFEST):
                (draft / name).chmod(0o644)
                flush(draft / name)
            flush(draft)
            shutil.rmtree(final, ignore_errors=True)
            draft.rename(final)
            flush(self.folder)
            for left in self.folder.glob(f"{DRAFT}*"):  # by a run that was killed while it saved
                shutil.rmtree(left, ignore_errors=True)
        except Exception as error:  # a full disk raises an OSError, or an error of safetensors' own
            shutil.rmtree(draft, ignore_errors=True)
            newest = next(iter(self._folders()), None)
            earlier = f"{newest.name} is intact" if newest else "there is no earlier one"
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.folder}: {error}\n"
                f"{earlier}; free disk space or repair the disk, then give the same command to resume"
            ) from error
        # Checkpoints of later steps are damaged, or the run would have resumed from them: they do not count.
        older = [f for f in self._folders() if f.name < final.name and f.name != f"step-{self.pinned or 0:09d}"]
        for old in older[self.keep - 1 :]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def newest(self, report: Callable[[str], object] = print, until: int | None = None) -> Checkpoint | None:
        """The newest valid checkpoint, None if there is none at all, a CheckpointError if none is valid.

        `report` gets a message for each damaged one. Those of steps after `until` are passed over.
        """
        faults = []
        for folder in self._folders():
            if until is not None and folder.name > f"step-{until:09d}":
                continue
            fault = _fault(folder)
            if fault is None:
                state = json.loads((folder / STATE).read_text())
                return Checkpoint(folder, state["step"], state)
            faults.append(f"  {fault}")
            report(f"{fault}; trying the checkpoint before it")
        if faults:
            listed = "\n".join(faults)
            raise CheckpointError(
                f"no checkpoint in {self.folder} is valid:\n{listed}\n"
                "restore one from a copy, or start afresh with checkpoint.resume=false or another output_dir"
            )
        return None

    def set_aside(self, after: int, where: Path) -> bool:
        """Move the checkpoints of later steps to another folder; whether there are any."""
        later = [folder for folder in self._folders() if folder.name > f"step-{after:09d}"]
        for folder in later:
            where.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(where / folder.name, ignore_errors=True)
            folder.rename(where / folder.name)
        return bool(later)

    def is_empty(self) -> bool:
        """Whether there is none, valid or not."""
        return not self._folders()

    def _folders(self) -> list[Path]:
        """Finished checkpoints, newest first."""
        return sorted(self.folder.glob("step-*"), reverse=True)


def _fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file; None for a valid one."""
    path = folder / MANIFEST
    try:
        manifest: dict[str, dict[str, Any]] = json.loads(path.read_text())
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest.items()}
    except FileNotFoundError:
        return f"{path} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{path} is damaged"
    if missing := {WEIGHTS, OPTIMIZER, STATE} - set(expected):
        return f"{path} is damaged: it does not list {', '.join(sorted(missing))}"
    for name, (size, digest) in expected.items():
        file = folder / name
        if not file.is_file():
            return f"{file} is missing"
        if file.stat().st_size != size:
            return f"{file} is cut: {file.stat().st_size} bytes instead of {size}"
        if sha256(file) != digest:
            return f"{file} is damaged: its SHA-256 is not the one that was written"
    return None


def _plain(tensor: Tensor) -> Tensor:
    """A copy in main memory that shares no storage, as safetensors requires."""
    return tensor.detach().cpu().contiguous().clone()


def _without_tensors(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """A tree of dicts, lists, numbers, dtypes and tensors as JSON; the tensors are put into `tensors`, by path."""
    if isinstance(value, Tensor):
        tensors[name] = _plain(value)
        return {"tensor": name}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, dict):
        return {"dict": [[key, _without_tensors(item, tensors, f"{name}.{key}")] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [_without_tensors(item, tensors, f"{name}.{i}") for i, item in enumerate(value)]
        return {"list" if isinstance(value, list) else "tuple": items}
    return value


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `_without_tensors`."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dtype":
        return getattr(torch, content)
    if kind == "dict":
        return {key: _with_tensors(item, tensors) for key, item in content}
    return (list if kind == "list" else tuple)(_with_tensors(item, tensors) for item in content)

"""Saving and finding the state of a run: atomic, flushed, checked by SHA-256, nothing pickled.

A checkpoint is a folder `step-000001200/` of `weights.safetensors`, `optimizer.safetensors`, `state.json` and a
`manifest.json` that lists their sizes and hashes. It is written under another name and renamed when it is whole
and on the disk, so that whatever stops the machine, the folder is there whole or not at all.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mpp.files import flush, sha256

WEIGHTS, OPTIMIZER, STATE, MANIFEST = "weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
DRAFT = ".draft-"


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written, or none that can be read."""


class Checkpoint(NamedTuple):
    """A checked checkpoint on disk."""

    folder: Path
    step: int
    state: dict[str, Any]

    def load_into(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put weights and optimiser back, bit for bit."""
        module.load_state_dict(load_file(self.folder / WEIGHTS))
        tensors = load_file(self.folder / OPTIMIZER)
        optimizer.load_state_dict(_with_tensors(self.state["optimizer"], tensors))


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: where they lie.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def save(self, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> Path:
        """Write the checkpoint of a step; then, and only then, remove the ones that are too old.

        Raises:
            CheckpointError: if it cannot be written; those already there are untouched.
        """
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
        except Exception as error:  # a full disk shows as OSError or as safetensors' own, with any number
            shutil.rmtree(draft, ignore_errors=True)
            newest = next(iter(self._folders()), None)
            earlier = f"{newest.name} is intact" if newest else "there is no earlier one"
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.folder}: {error}\n"
                f"{earlier}; make room or mend the disk, then give the same command to go on"
            ) from error
        # Damaged checkpoints of later steps do not count: the ones before them are all there is.
        older = [folder for folder in self._folders() if folder.name < final.name]
        for old in older[self.keep - 1 :]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def newest(self, report: Any = print) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None if none was ever finished.

        Args:
            report: called with a message for each damaged one, which names the file.

        Raises:
            CheckpointError: if there are checkpoints, but none is whole.
        """
        folders = self._folders()
        faults = []
        for folder in folders:
            fault = _fault(folder)
            if fault is None:
                state = json.loads((folder / STATE).read_text())
                return Checkpoint(folder, state["step"], state)
            faults.append(fault)
            report(f"{fault}; trying the checkpoint before it")
        if folders:
            listed = "\n".join(f"  {fault}" for fault in faults)
            raise CheckpointError(
                f"no checkpoint in {self.folder} is whole:\n{listed}\n"
                "restore one from a copy, or start afresh with checkpoint.resume=false or another output_dir"
            )
        return None

    def newest_state(self) -> dict[str, Any] | None:
        """The state of the newest checkpoint, or None. Its weights are neither read nor checked.

        Raises:
            CheckpointError: if the state cannot be read.
        """
        if self.is_empty():
            return None
        path = self._folders()[0] / STATE
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error

    def is_empty(self) -> bool:
        """Whether there is none, whole or not."""
        return not self._folders()

    def _folders(self) -> list[Path]:
        """Finished checkpoints, newest first."""
        return sorted(self.folder.glob("step-*"), reverse=True)


def _fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file; None if nothing is."""
    path = folder / MANIFEST
    if not path.is_file():
        return f"{path} is missing"
    try:
        manifest: dict[str, dict[str, Any]] = json.loads(path.read_text())
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest.items()}
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
    """A copy in main memory that shares nothing, as safetensors wants it."""
    return tensor.detach().cpu().contiguous().clone()


def _without_tensors(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """A tree of dicts, lists, numbers, types and tensors as JSON; the tensors go into `tensors`, under their path."""
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
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "dtype" in value:
        return getattr(torch, value["dtype"])
    if "dict" in value:
        return {key: _with_tensors(item, tensors) for key, item in value["dict"]}
    ((kind, items),) = value.items()
    loaded = [_with_tensors(item, tensors) for item in items]
    return loaded if kind == "list" else tuple(loaded)

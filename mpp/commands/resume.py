"""Whether a run can be resumed: the checkpoint to resume from, and what must be as it was."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mpp.data.table import ImageTable
from mpp.encoder.pretrained import weights_digest_of
from mpp.recipe import differences
from mpp.recipe.yaml import in_line
from mpp.run_folder import FolderLock
from mpp.settings import Settings
from mpp.training.checkpoint import Checkpoint, CheckpointError, Checkpoints
from mpp.training.optimizer import plan_schedule

Recipe = TypeVar("Recipe", bound=Any)
MAY_CHANGE = ("output_dir", "data.workers", "data.cache", "training.micro_batch_size", "training.compile",
              "journal.", "checkpoint.", "hub.")  # fmt: skip
"""Settings that may differ between a run and its resumption: they do not decide which weights come out."""

MAY_EXTEND = ("training.duration", "optimizer.schedule", "optimizer.decay", "optimizer.final_lr")
"""Settings that may differ too where a run is extended: the learning rates that they give are compared."""
EXTENDABLE = ("constant", "wsd")
"""Schedules whose learning rates do not depend on the length of the run, until the decay."""
LONGER = " With optimizer.schedule constant or wsd, checkpoint.extend=true makes a run longer."


def claim(recipe: Any, folder: Path, locks: list[FolderLock]) -> Checkpoint | None:
    """Lock a run's folder, and find the checkpoint to resume from. Nothing in it is changed yet.

    Raises:
        ValueError: if the folder is in use, or holds a run of another recipe.
        CheckpointError: if it holds checkpoints, but none that is whole.
    """
    locks.append(FolderLock(folder, recipe.command))
    return latest_checkpoint(recipe, folder) if recipe.checkpoint.resume else None


def as_begun(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with what a run of an earlier version did before a setting existed: it ignored transparency.

    A run keeps what it started with, whatever the default has become.
    """
    if not recipe.checkpoint.resume or recipe.data.background != type(recipe.data)().background:
        return recipe
    for path in (folder / "recipe.yaml", *sorted(folder.glob("search/*/recipe.yaml"))):
        before = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
        if before is not None and with_older_defaults(before)["data"]["background"] is None:
            print("this run started with data.background=null and keeps it: transparency is ignored")
            return recipe.model_copy(update={"data": recipe.data.model_copy(update={"background": None})})
    return recipe


def with_older_defaults(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe that a run has written down, with what earlier versions did before a setting existed."""
    return {**recipe, "data": {"background": None, **(recipe.get("data") or {})}}


def latest_checkpoint(recipe: Any, folder: Path) -> Checkpoint | None:
    """Return the latest valid checkpoint, None if there is none.

    Raises:
        ValueError: if the folder holds a run of another recipe, or one that started with other weights.
        CheckpointError: if it holds checkpoints, but none that is whole.
    """
    checkpoint = Checkpoints(folder / "checkpoints", recipe.checkpoint.keep).newest(print)
    if checkpoint is None:
        if (folder / "encoder" / "model.safetensors").is_file():
            raise CheckpointError(
                f"{folder} holds the encoder of a run, but {folder / 'checkpoints'} has no checkpoint to resume from: "
                "restore one, start afresh with checkpoint.resume=false, or choose another output_dir"
            )
        return None
    schema: type[Settings] = type(recipe)
    try:
        before: Any = schema.model_validate(with_older_defaults(checkpoint.state["recipe"]))
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{checkpoint.folder} was written by another version of this package, or by another command, whose recipe "
            "cannot be compared; resume with that one, choose another output_dir, or start afresh with "
            "checkpoint.resume=false"
        ) from error
    longer = recipe.checkpoint.extend and recipe.training.duration != before.training.duration
    refuse_changes(
        before, recipe, f"{folder} holds another run, at step {checkpoint.step}",
        may_change=MAY_EXTEND if longer else (),
    )  # fmt: skip
    check_same_weights(checkpoint.state.get("source_weights"), recipe, folder)
    return _extended(before, recipe, checkpoint, folder) if longer else checkpoint


def _extended(before: Any, now: Any, newest: Checkpoint, folder: Path) -> Checkpoint:
    """The latest checkpoint all of whose steps had the learning rates of the longer run; its state has the new length.

    Raises:
        ValueError: if there is none, or the new run is no longer than the old one.
    """
    rows = newest.state["data"]["rows"]
    old, new = (plan_schedule(recipe.optimizer, recipe.training, rows) for recipe in (before, now))
    if new.steps <= old.steps:
        raise ValueError(
            f"checkpoint.extend: the run in {folder} is {old.steps} steps long, and training.duration asks for "
            f"{new.steps}; give a longer one"
        )
    equal = (old.learning_rate(step) == new.learning_rate(step) for step in range(newest.step))
    same = next((step for step, is_equal in enumerate(equal) if not is_equal), newest.step)
    found = Checkpoints(folder / "checkpoints", now.checkpoint.keep).newest(print, until=same)
    changed = [d for d in differences(before, now) if d[0].startswith(MAY_EXTEND) and d[0] != "training.duration"]
    if found is None and changed:
        listed = _listed(changed)
        same_schedule = "give the old schedule to extend the run, or " * (before.optimizer.schedule in EXTENDABLE)
        raise ValueError(
            f"checkpoint.extend: the schedule was changed:\n{listed}\n"
            f"This changes the learning rates from step {same} on, and no checkpoint is as early as that: "
            f"{same_schedule}start a new run from the whole of this one with objective.source={folder} output_dir=NEW"
        )
    if found is None:
        raise ValueError(
            f"checkpoint.extend: with optimizer.schedule={before.optimizer.schedule} the learning rates of {old.steps} "
            f"and of {new.steps} steps differ from step {same} on, and no checkpoint is as early as that. Start a new "
            f"run from the whole of this one: objective.source={folder} output_dir=NEW. A run with "
            "optimizer.schedule=constant, or wsd with optimizer.decay, can be extended later"
        )
    progress = {**found.state["progress"], "ended": False}
    return found._replace(state={**found.state, "steps": new.steps, "progress": progress})


def refuse_changes(before: Settings, now: Settings, what: str, may_change: tuple[str, ...] = ()) -> None:
    """Compare the recipe of a run with the one that is to resume it.

    Raises:
        ValueError: with `what` was found, and every difference that decides which weights come out.
    """
    changed = [d for d in differences(before, now) if not d[0].startswith((*MAY_CHANGE, *may_change))]
    if _source_beside(before) is not None and _source_beside(before) == _source_beside(now):  # both were moved
        changed = [d for d in changed if d[0] not in ("encoder.source", "objective.source")]
    if changed:
        is_length = all(path.startswith(MAY_EXTEND) for path, _, _ in changed)
        raise ValueError(
            f"{what}.\n"
            "Choose another output_dir, give its settings to resume it, or start afresh with checkpoint.resume=false."
            f"{LONGER * is_length}\n"
            f"Its settings, and those of this recipe:\n{_listed(changed)}"
        )


def _listed(changed: list[tuple[str, Any, Any]]) -> str:
    """Differences, a line each, the old value as one would give it on the command line."""
    return "\n".join(f"  {path}={in_line(old)} then, {in_line(new)} now" for path, old, new in changed)


def _source_beside(recipe: Any) -> str | None:
    """Where the encoder comes from as seen from the run's folder, if that is a path."""
    source = recipe.encoder.source
    return os.path.relpath(source, recipe.output_dir) if source is not None and "/" in source else None


def is_finished(checkpoint: Checkpoint | None) -> bool:
    """Whether nothing is left to train."""
    if checkpoint is None:
        return False
    return checkpoint.step == checkpoint.state["steps"] or checkpoint.state["progress"].get("ended", False)


def check_same_images(checkpoint: Checkpoint, rows: ImageTable, source: str) -> None:
    """Refuse to resume with other images than a run began with.

    Raises:
        ValueError: with what is different.
    """
    then, now = checkpoint.state["data"], identity_of(rows)
    if now != then:
        raise ValueError(
            f"the images of {source} are not those that the run started with: "
            f"{then['rows']} rows then, {now['rows']} now"
            + ("; the rows themselves differ" if then["rows"] == now["rows"] else "")
        )


def check_same_weights(then: str | None, recipe: Any, folder: Path) -> None:
    """Refuse to resume, or to take for finished, what started with other weights than its source has now.

    Args:
        then: the digest of the weights that it started with; None if that is not known.
        recipe: of a command that trains.
        folder: of the run.

    Raises:
        ValueError: if they differ.
    """
    now = weights_digest_of(recipe.encoder)
    if None not in (then, now) and then != now:
        raise ValueError(
            f"{folder} started with other weights than those that {recipe.encoder.source} holds now: give the old ones "
            "back, choose another output_dir, or start afresh with checkpoint.resume=false. A run's weights change "
            "for as long as it trains: copy its encoder folder to begin with those of now"
        )


def identity_of(rows: ImageTable) -> dict[str, Any]:
    """What identifies the training images wherever they lie: how many, a few of them to the last byte, all labels."""
    digest = hashlib.sha256()
    if rows.labels is not None:
        digest.update(rows.labels.tobytes())
    for row in sorted({0, len(rows) // 3, len(rows) // 2, len(rows) - 1}):
        try:
            digest.update(rows.encoded(row))
        except (ValueError, OSError):
            digest.update(b"unreadable")
    return {"rows": len(rows), "sha256": digest.hexdigest()}

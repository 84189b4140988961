"""When a run was resumed, started again or extended: `resumed.jsonl` in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from mpp.data.inventory import counted
from mpp.files import write_text
from mpp.training.checkpoint import STATE, Checkpoint
from mpp.type_hints import listed

FILE = "resumed.jsonl"


class Resumption(NamedTuple):
    """A start of a process that was not the first of its run."""

    step: int
    """Of the checkpoint; 0 where there was none."""
    extended_to: int | None = None
    """The new length of the run in steps, if it was made longer."""


def note_resumption(folder: Path, checkpoint: Checkpoint | None, steps: int) -> None:
    """Write down that a run starts again. Nothing is written at its first start.

    Args:
        folder: of the run, before anything in it is changed.
        checkpoint: what the run resumes from, None for its beginning.
        steps: the length of the run.
    """
    if checkpoint is None and not (folder / "recipe.yaml").is_file():
        return
    longer = None
    if checkpoint is not None:
        before = json.loads((checkpoint.folder / STATE).read_text(encoding="utf-8"))["steps"]
        longer = steps if steps != before else None
    entries = [*resumptions(folder), Resumption(checkpoint.step if checkpoint else 0, longer)]
    write_text(folder / FILE, "".join(f"{json.dumps(entry._asdict())}\n" for entry in entries))


def resumptions(folder: Path) -> list[Resumption]:
    """What was written down, in its order; a line that a kill truncated is left out."""
    found = []
    path = folder / FILE
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            found.append(Resumption(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def stops(found: list[Resumption], metrics: list[dict[str, Any]]) -> str:
    """The stops of a run in words; empty if there were none.

    Versions that wrote no `resumed.jsonl` are known by the first line of each process in the metrics, which tells how
    long its first step took; a stop before the first line cannot be seen there.
    """
    steps = [each.step for each in found if each.extended_to is None]
    again = steps.count(0)
    parts = [f"resumed from step {listed([f'{step:,}' for step in steps if step], 'and')}"] if any(steps) else []
    parts += [f"started again from the beginning {counted(again, 'time')}"] if again else []
    between = []
    for number in [number for number, line in enumerate(metrics) if "seconds_to_first_step" in line][1:]:
        before, after = metrics[number - 1]["step"], metrics[number]["step"]
        if not any(before <= each.step < after for each in found):
            between.append(f"{before:,} and {after:,}")
    parts += [f"resumed between steps {listed(between, 'and between')}"] if between else []
    return f"{counted(len(steps) + len(between), 'stop')}; {'; '.join(parts)}" if parts else ""


def extensions(found: list[Resumption]) -> str:
    """How a run was made longer, in words; empty if it was not."""
    longer = [f"from step {each.step:,} to {each.extended_to:,} steps" for each in found if each.extended_to]
    return f"extended {listed(longer, 'and')}" if longer else ""

"""The progress of a study: the steps of each running unit, and the time left over all units."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from mpp.commands.search import combinations, with_candidate
from mpp.recipe import FinetuneRecipe, GapRecipe, PretrainRecipe
from mpp.study.unit_recipes import recipes_of
from mpp.study.units import Unit

TAIL = 4096
"""Bytes at the end of a log in which its last line is looked for."""


class Stage(NamedTuple):
    """A training of a unit."""

    title: str
    folder: Path
    steps: int
    batch_size: int


class Seen(NamedTuple):
    """How far a stage has come."""

    step: int = 0
    seconds_left: float | None = None


def stages_of(recipe: GapRecipe, unit: Unit) -> list[Stage]:
    """The trainings of a unit in their order, every run of a search among them."""
    recipes, found = recipes_of(recipe, unit), list[Stage]()
    if recipes.pretrain is not None:
        found.append(_stage("pre-training", recipes.pretrain))
    for tried, tuning in recipes.finetune.items():
        title = f"fine-tuning on {100 * tried.fraction:g} %" + (f" at {tried.lr:g}" if tried.lr else "")
        for candidate in combinations(tuning) if tuning.search.is_asked_for else ():
            folder = str(Path(tuning.output_dir) / "search" / str(candidate))
            found.append(_stage(f"search {candidate}", with_candidate(tuning, candidate, output_dir=folder)))
        found.append(_stage(title, tuning))
    return found


def _stage(title: str, recipe: PretrainRecipe | FinetuneRecipe) -> Stage:
    training = recipe.training
    steps = training.duration.in_steps(batch_size=training.batch_size, rows=1)  # a study does not count in epochs
    return Stage(title, Path(recipe.output_dir), steps, training.batch_size)


def seen(stage: Stage) -> Seen:
    """The last step in a stage's log."""
    try:
        with (stage.folder / "metrics.jsonl").open("rb") as file:
            file.seek(-min(TAIL, file.seek(0, os.SEEK_END)), os.SEEK_END)
            lines = file.read().splitlines()
    except OSError:
        return Seen()
    for line in reversed(lines):
        try:
            entry = json.loads(line)
            return Seen(int(entry["step"]), entry.get("seconds_left"))
        except (ValueError, KeyError, TypeError):  # it is being written, or starts before what was read
            continue
    return Seen()


class StudyProgress:
    """Bars on a terminal: one of all units, by the images that they train on, and a line for each worker's unit.

    The time left is told from the images trained on since this process started: evaluations count nothing.
    """

    def __init__(self, recipe: GapRecipe, units: Sequence[Unit], done: Iterable[Unit], workers: int) -> None:
        self.stages = {unit: stages_of(recipe, unit) for unit in units}
        # A unit that trains nothing counts as one image, so that it can be seen to be done.
        self.images = {unit: sum(s.steps * s.batch_size for s in each) or 1 for unit, each in self.stages.items()}
        self.total, self.done = sum(self.images.values()), set(done)
        self.started, self.initial = time.monotonic(), sum(map(self.trained, units))
        self._bars: list[tqdm] = []
        if sys.stderr.isatty():
            form = "{desc} {percentage:3.0f} %|{bar}| {elapsed}, {remaining} left"
            numbers: dict[str, Any] = {"total": self.total, "initial": self.initial, "smoothing": 0}
            self._bars = [tqdm(**numbers, bar_format=form, dynamic_ncols=True)]
            self._bars += [tqdm(bar_format="{desc}", position=n + 1, leave=False, ncols=80) for n in range(workers)]

    def update(self, running: Mapping[int, Unit]) -> None:
        """Show how far the units of the workers have come."""
        for worker, line in enumerate(self._bars[1:]):
            unit = running.get(worker)
            line.set_description_str(f"  {unit}: {self.state(unit)}" if unit is not None else "")
        for bar in self._bars[:1]:
            bar.n = sum(map(self.trained, {*running.values(), *self.done}))
            bar.set_description_str(f"{len(self.done)} of {len(self.images)} units")

    def state(self, unit: Unit) -> str:
        """What a running unit does, with its step and the time left of that training."""
        begun = [(stage, found) for stage in self.stages[unit] if (found := seen(stage)).step]
        if not begun:
            return "starting" if self.stages[unit] else "evaluating"
        stage, found = begun[-1]
        left = "" if found.seconds_left is None else f", {tqdm.format_interval(found.seconds_left)} left"
        return f"{stage.title}, " + ("done" if found.step >= stage.steps else f"{found.step:,}/{stage.steps:,}{left}")

    def trained(self, unit: Unit) -> int:
        """The images that a unit has trained on."""
        if unit in self.done:
            return self.images[unit]
        return sum(min(seen(stage).step, stage.steps) * stage.batch_size for stage in self.stages[unit])

    def left(self, running: Iterable[Unit]) -> str:
        """Units and time that are left; no time while nothing has been trained."""
        images = sum(map(self.trained, {*running, *self.done}))
        text = f"{len(self.images) - len(self.done)} of {len(self.images)} units left"
        if self.initial < images < self.total:
            each = (time.monotonic() - self.started) / (images - self.initial)
            text += f", about {tqdm.format_interval(each * (self.total - images))}"
        return text

    def say(self, text: str) -> None:
        """Print a line, above the bars where there are any."""
        if self._bars:
            tqdm.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Remove the bars."""
        for bar in reversed(self._bars):
            bar.close()

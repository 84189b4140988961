"""The worker processes of a study: one for each unit, `study.parallel` at once."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from mpp.recipe import GapRecipe
from mpp.study.progress import StudyProgress
from mpp.study.units import Unit
from mpp.training.distributed import LAUNCHED, threads
from mpp.training.settings import ComputeSettings
from mpp.training.signals import STARTED_BY, StopRequest, exit_code

NOT_YET = 75
"""Exit code of a study that stopped because its time was up: the same command resumes."""
PATIENCE = 120.0
"""Seconds that a unit has to save when it is asked to stop."""
POLL = 0.2
"""Seconds between checks of the processes."""
SHOWN_EVERY = 1.0
"""Seconds between looks at their progress."""


class UnitProcess:
    """`python -m mpp.gap` on one unit of a study, its output in the unit's `log.txt`."""

    def __init__(self, folder: Path, unit: Unit, worker: int, workers: int) -> None:
        """Start it as one of several workers, which have an equal number of cores each, and the GPUs in turn."""
        self.unit, self.log = unit, folder / str(unit) / "log.txt"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.started, self._asked = time.monotonic(), math.inf
        command = [sys.executable, "-m", "mpp.gap", str(folder / "recipe.yaml"), f'study.only=["{unit}"]']
        command += [f"output_dir={folder}"]  # the folder may have been moved since
        environment = {**os.environ, STARTED_BY: "gap"}
        if workers > 1:
            environment.pop(LAUNCHED, None)  # with it, a single thread would be taken for the launcher's default
            environment["OMP_NUM_THREADS"] = str(max(threads(ComputeSettings()) // workers, 1))
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
            if len(gpus) > 1:
                environment["CUDA_VISIBLE_DEVICES"] = gpus[worker % len(gpus)]
        with self.log.open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
            )

    def ask_to_stop(self) -> None:
        """Ask it to save and end; kill it if it takes too long: its last checkpoint remains."""
        if self._asked == math.inf:
            self._asked = time.monotonic()
            self._process.terminate()
        elif time.monotonic() > self._asked + PATIENCE:
            self._process.kill()

    def code(self) -> int | None:
        """Its exit code, `NOT_YET` if it was asked to stop and did; None while it runs."""
        code = self._process.poll()
        return NOT_YET if code and self._asked < math.inf else code


def run_all(recipe: GapRecipe, units: Sequence[Unit], is_done: Callable[[Unit], bool], failed: list[str]) -> int:
    """Run every unit that is not finished, and list those that fail in `failed`: 0, or the exit code of a stop."""
    stop, study, folder = StopRequest(), recipe.study, Path(recipe.output_dir)
    stop.listen()
    deadline = time.monotonic() + 60 * study.minutes if study.minutes else math.inf
    names = {unit: f"[{number}/{len(units)}] {unit}" for number, unit in enumerate(units, start=1)}
    waiting = [unit for unit in units if not is_done(unit)]
    for unit in units:
        if unit not in waiting:
            print(f"{names[unit]}: done before", flush=True)
    workers = min(study.parallel, len(waiting))
    progress = StudyProgress(recipe, units, set(units) - set(waiting), workers)
    running: dict[int, UnitProcess] = {}
    shown = -math.inf
    try:
        while waiting or running:
            if stop.asked() is not None or time.monotonic() > deadline:
                waiting.clear()
                for process in running.values():
                    process.ask_to_stop()
            for worker in range(workers):
                if worker in running and (code := running[worker].code()) is not None:
                    _report(running.pop(worker), code, names, failed, progress, running)
                if waiting and worker not in running:
                    progress.say(f"{names[waiting[0]]} …")
                    running[worker] = UnitProcess(folder, waiting.pop(0), worker, workers)
            if time.monotonic() > shown + SHOWN_EVERY:
                progress.update({worker: process.unit for worker, process in running.items()})
                shown = time.monotonic()
            time.sleep(POLL)
    finally:  # e.g. the disk is full
        progress.update({worker: process.unit for worker, process in running.items()})
        progress.close()
        while running := {worker: process for worker, process in running.items() if process.code() is None}:
            for process in running.values():
                process.ask_to_stop()
            time.sleep(POLL)
    left, number = sum(not is_done(unit) for unit in units), stop.asked()
    if not left or (failed and number is None and left == len(failed)):
        return 0
    print(f"\n{left} of {len(units)} are left. Give the same command again to resume.")
    return NOT_YET if number is None else exit_code(number)


def _report(
    process: UnitProcess,
    code: int,
    names: dict[Unit, str],
    failed: list[str],
    progress: StudyProgress,
    running: dict[int, UnitProcess],
) -> None:
    """Print how a unit ended, and what is left; a failure is listed with the end of its log."""
    if code == NOT_YET:
        return
    if code:
        last = "\n".join(process.log.read_text(errors="replace").strip().splitlines()[-15:])
        failed.append(f"{process.unit} ended with exit code {code}; the end of {process.log}:\n{last}")
    progress.done.add(process.unit)
    ended = "failed" if code else tqdm.format_interval(time.monotonic() - process.started)
    progress.say(f"{names[process.unit]}: {ended}; {progress.left(each.unit for each in running.values())}")

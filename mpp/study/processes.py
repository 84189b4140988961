"""The worker processes of a study: one for each unit, `study.parallel` at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from mpp.study.settings import StudySettings
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
OUTCOME = "unit.json"
"""The file of a finished unit's results, in its folder."""


class UnitProcess:
    """`python -m mpp.gap` on one unit of a study, its output in the unit's `log.txt`."""

    def __init__(self, folder: Path, unit: Unit, place: int, places: int) -> None:
        """Start it as one of `places` worker processes, which share the cores equally and the GPUs in turn."""
        self.log = folder / str(unit) / "log.txt"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.begun, self._asked = time.monotonic(), 0.0
        command = [sys.executable, "-m", "mpp.gap", str(folder / "recipe.yaml"), f'study.only=["{unit}"]']
        command += [f"output_dir={folder}"]  # the folder may have been moved since
        environment = {**os.environ, STARTED_BY: "gap"}
        if places > 1:
            environment.pop(LAUNCHED, None)  # with it, a single thread would be taken for the launcher's default
            environment["OMP_NUM_THREADS"] = str(max(threads(ComputeSettings()) // places, 1))
            if len(gpus := _gpus()) > 1:
                environment["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
        with self.log.open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
            )

    def ask_to_stop(self) -> None:
        """Ask it to save and end; kill it if it takes too long: its last checkpoint remains."""
        if not self._asked:
            self._asked = time.monotonic()
            self._process.send_signal(signal.SIGTERM)
        elif time.monotonic() > self._asked + PATIENCE:
            self._process.kill()

    def code(self) -> int | None:
        """Its exit code, `NOT_YET` if it was asked to stop and did; None while it runs."""
        code = self._process.poll()
        return NOT_YET if self._asked and code else code


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]


def run_all(study: StudySettings, folder: Path, units: Sequence[Unit], failed: list[str]) -> int:
    """Run every unit that is not finished, and list those that fail in `failed`: 0, or the exit code of a stop."""
    stop = StopRequest()
    stop.listen()
    deadline = time.monotonic() + 60 * study.minutes if study.minutes else float("inf")
    waiting = []
    for number, unit in enumerate(units, start=1):
        name = f"[{number}/{len(units)}] {unit}"
        if (folder / str(unit) / OUTCOME).is_file():
            print(f"{name}: done before", flush=True)
        else:
            waiting.append((name, unit))
    running: dict[int, tuple[str, UnitProcess]] = {}
    places = min(study.parallel, len(waiting))
    try:
        _run(folder, waiting, running, places, deadline, stop, failed)
    finally:  # e.g. the disk is full
        while running:
            for place, (_, process) in list(running.items()):
                process.ask_to_stop()
                if process.code() is not None:
                    del running[place]
            time.sleep(POLL)
    left = sum(not (folder / str(unit) / OUTCOME).is_file() for unit in units)
    number = stop.asked()
    if not left or (failed and number is None and left == len(failed)):
        return 0
    print(f"\n{left} of {len(units)} are left. Give the same command again to resume.")
    return NOT_YET if number is None else exit_code(number)


def _run(
    folder: Path,
    waiting: list[tuple[str, Unit]],
    running: dict[int, tuple[str, UnitProcess]],
    places: int,
    deadline: float,
    stop: StopRequest,
    failed: list[str],
) -> None:
    """Start the next unit wherever a worker is free, until none is left or it is time to stop."""
    while waiting or running:
        if stop.asked() is not None or time.monotonic() > deadline:
            waiting.clear()
            for _, process in running.values():
                process.ask_to_stop()
        for place in range(places):
            if waiting and place not in running:
                name, unit = waiting.pop(0)
                print(f"{name} …", flush=True)
                running[place] = (name, UnitProcess(folder, unit, place, places))
        for place, (name, process) in list(running.items()):
            if (code := process.code()) is None:
                continue
            del running[place]
            if code == NOT_YET:
                continue
            if code:  # go on with the others
                last = "\n".join(process.log.read_text(errors="replace").strip().splitlines()[-15:])
                failed.append(f"{name.split()[-1]} ended with exit code {code}; the end of {process.log}:\n{last}")
            print(f"{name}: {'failed' if code else tqdm.format_interval(time.monotonic() - process.begun)}", flush=True)
        time.sleep(POLL)

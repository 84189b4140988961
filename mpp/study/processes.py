"""The units of a study, each in a process of its own, several at once where there is room."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mpp.study.settings import StudySettings
from mpp.study.units import Unit
from mpp.training.distributed import LAUNCHED, threads
from mpp.training.settings import ComputeSettings
from mpp.training.signals import STARTED_BY

NOT_YET = 75
"""Exit code of a study that stopped because its time was up: the same command goes on."""
PATIENCE = 120.0
"""Seconds that a unit is given to save when it is asked to stop."""
POLL = 0.2
"""Seconds between looks at the processes."""
OUTCOME = "unit.json"
"""What a finished unit leaves in its folder."""


class UnitProcess:
    """`python -m mpp.gap` on one unit of a study, its output in the unit's `log.txt`."""

    def __init__(self, folder: Path, unit: Unit, place: int, places: int) -> None:
        """Start it, at one of so many places: equal shares of this machine's cores, and its GPUs in turn."""
        self.log = folder / str(unit) / "log.txt"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.begun, self._asked = time.monotonic(), 0.0
        command = [sys.executable, "-m", "mpp.gap", str(folder / "recipe.yaml"), f'study.only=["{unit}"]']
        command += [f"output_dir={folder}"]  # the folder may have been moved since
        environment = {**os.environ, STARTED_BY: "gap"}
        if places > 1:
            environment.pop(LAUNCHED, None)  # with it, a single thread would not be taken for a wish
            environment["OMP_NUM_THREADS"] = str(max(threads(ComputeSettings()) // places, 1))
            if len(gpus := _gpus()) > 1:
                environment["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
        with self.log.open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
            )

    def ask_to_stop(self) -> None:
        """Have it save and end, if it was not asked before; one that takes too long is killed: what it saved stands."""
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


class Stop:
    """Remembers that the study was asked to stop."""

    def __init__(self) -> None:
        self.asked = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self.asked = number


def run_all(study: StudySettings, folder: Path, units: Sequence[Unit], failed: list[str]) -> int:
    """Run every unit that is not finished, and note those that fail: 0, or how it was stopped."""
    stop = Stop()
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
    finally:  # of a study that cannot go on, e.g. for want of room
        while running:
            for place, (_, process) in list(running.items()):
                process.ask_to_stop()
                if process.code() is not None:
                    del running[place]
            time.sleep(POLL)
    left = sum(not (folder / str(unit) / OUTCOME).is_file() for unit in units)
    if not left or (failed and not stop.asked and left == len(failed)):
        return 0
    print(f"\n{left} of {len(units)} are left. Give the same command again to go on.")
    return 128 + stop.asked if stop.asked else NOT_YET


def _run(
    folder: Path,
    waiting: list[tuple[str, Unit]],
    running: dict[int, tuple[str, UnitProcess]],
    places: int,
    deadline: float,
    stop: Stop,
    failed: list[str],
) -> None:
    """Give every place its next unit until none is left, or it is time to stop."""
    while waiting or running:
        if stop.asked or time.monotonic() > deadline:
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
            if code:  # the others may do better
                last = "\n".join(process.log.read_text(errors="replace").strip().splitlines()[-15:])
                failed.append(f"{name.split()[-1]} ended with exit code {code}; the end of {process.log}:\n{last}")
            print(f"{name}: {'failed' if code else tqdm.format_interval(time.monotonic() - process.begun)}", flush=True)
        time.sleep(POLL)

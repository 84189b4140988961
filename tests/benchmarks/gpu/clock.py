"""Milliseconds of work on a device, and several works measured in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Work = Callable[[], object]


def window(work: Work, count: int, device: torch.device) -> float:
    """Milliseconds of one of `count` calls in a row: by CUDA events on a GPU, by the wall clock on a CPU."""
    if device.type != "cuda":
        begun = time.perf_counter()
        for _ in range(count):
            work()
        return 1000 * (time.perf_counter() - begun) / count
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    first.record()
    for _ in range(count):
        work()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / count


def in_turn(sides: Mapping[str, Work], device: torch.device, *, seconds: float) -> dict[str, dict[str, Any]]:
    """Median milliseconds of each side, measured in windows that alternate, so that a disturbance hits all alike.

    A window is about a tenth of a second long. The order of the sides is reversed from round to round.
    """
    real = device.type == "cuda"
    counts = {}
    for name, work in sides.items():
        for _ in range(3 if real else 1):
            work()
        counts[name] = max(round(100 / max(window(work, 2, device), 0.02)), 2) if real else 1
    taken: dict[str, list[float]] = {name: [] for name in sides}
    begun, fewest = time.perf_counter(), 5 if real else 2
    while len(next(iter(taken.values()))) < fewest or (real and time.perf_counter() - begun < seconds):
        for name in list(sides) if len(next(iter(taken.values()))) % 2 else list(reversed(sides)):
            taken[name].append(window(sides[name], counts[name], device))
    return {
        name: {
            "ms": statistics.median(windows),
            "ms_least": min(windows),
            "ms_most": max(windows),
            "windows": len(windows),
            "steps_a_window": counts[name],
        }
        for name, windows in taken.items()
    }

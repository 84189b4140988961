"""A command whose steps are observed: `tests.benchmarks.gpu.observed NOTES FIRST LAST MODULE ARGUMENTS…`.

NOTES, a JSON file, gets three things: how long each batch was waited for; what made the host wait for the device from
the end of step FIRST to the end of step LAST; and a profile of the three steps after that. With LAST 0 only the waits
are recorded. Nothing of the training loop is replaced: steps are counted by a hook that PyTorch calls after every
optimizer step, and batches where PyTorch's loader gives them.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

import mpp

PACKAGE = Path(mpp.__file__).parent
PROFILED = 3
READS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")
"""Operations of a CPU run that would make the host wait for a GPU."""
SHOWN = 12


def caller() -> str:
    """The innermost line of this repository that is being executed."""
    frames = [f for f in traceback.extract_stack() if f.filename != __file__ and "site-packages" not in f.filename]
    last = ([frame for frame in frames if Path(frame.filename).is_relative_to(PACKAGE)] or frames)[-1]
    where = Path(last.filename)
    where = where.relative_to(PACKAGE.parent) if where.is_relative_to(PACKAGE) else Path(where.name)
    return f"{where}:{last.lineno} {(last.line or '').strip()[:100]}"


class HostReads(TorchDispatchMode):
    """Counts operations that give the host a value, by the line that asks for it."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in READS:
            self.found[f"{func.overloadpacket.__name__}: {caller()}"] += 1
        return func(*args, **(kwargs or {}))


class Observer:
    """Counts the steps, and opens and closes the windows."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last, self.step = first, last, 0
        self.waits: list[tuple[int, float]] = []
        self.ends: list[float] = []
        self.found: Counter[str] = Counter()
        self.window: Any = None
        self.profiled: dict[str, Any] = {}
        self.cuda = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU") != "true"

    def stepped(self, *_: Any) -> None:
        """Called after every optimizer step."""
        self.step += 1
        self.ends.append(time.perf_counter())
        if not self.last:
            return
        if self.step == self.first:
            self._open()
        elif self.step == self.last:
            self._close()
            self._start_profile()
        elif self.step == self.last + PROFILED:
            self._end_profile()

    def _open(self) -> None:
        if not self.cuda:
            self.window = HostReads(self.found)
            self.window.__enter__()
            return
        self.window = warnings.catch_warnings()
        self.window.__enter__()
        warnings.simplefilter("always")
        warnings.showwarning = self._warned
        torch.cuda.set_sync_debug_mode("warn")

    def _close(self) -> None:
        if self.cuda:
            torch.cuda.set_sync_debug_mode("default")
        self.window.__exit__(None, None, None)

    def _warned(self, message: Warning | str, *_: Any, **__: Any) -> None:
        if "called a synchronizing" in str(message):
            self.found[caller()] += 1

    def _start_profile(self) -> None:
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.cuda else [])]
        try:
            self.window = profile(activities=kinds)
            self.window.__enter__()
            self.began = time.perf_counter()
        except RuntimeError as error:
            self.window, self.profiled = None, {"error": str(error)}

    def _end_profile(self) -> None:
        if self.window is None:
            return
        if self.cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self.began
        self.window.__exit__(None, None, None)
        events = self.window.key_averages()
        if self.cuda:  # kernels alone: operators and annotations contain them
            kernels = [e for e in events if e.device_type.name == "CUDA" and not getattr(e, "is_user_annotation", 0)]
            times = {event.key: event.self_device_time_total / 1000 for event in kernels}
        else:
            times = {event.key: event.self_cpu_time_total / 1000 for event in events}
        longest = sorted(times, key=lambda key: -times[key])[:SHOWN]
        calls = {e.key: e.count for e in events if re.match(r"cuda.*Synchronize|cudaLaunchKernel|cudaMemcpy", e.key)}
        self.profiled = {
            "steps": PROFILED,
            "ms_a_step": 1000 * seconds / PROFILED,
            "busy": sum(times.values()) / 1000 / seconds,
            "calls_a_step": {key: count / PROFILED for key, count in calls.items()},
            "longest_ms_a_step": {key[:100]: times[key] / PROFILED for key in longest},
        }

    def notes(self) -> dict[str, Any]:
        """What was observed."""
        return {
            "waits": self.waits,
            "ends": self.ends,
            "window": [self.first, self.last],
            "host_waits": dict(self.found.most_common()),
            "profile": self.profiled,
        }


def time_loaders(observer: Observer) -> None:
    """Record how long each batch of any `DataLoader` is waited for."""
    plain = DataLoader.__iter__

    def timed(loader: DataLoader[Any]) -> Iterator[Any]:
        iterator = plain(loader)
        while True:
            begun = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            observer.waits.append((observer.step, time.perf_counter() - begun))
            yield batch

    DataLoader.__iter__ = timed  # pyright: ignore[reportAttributeAccessIssue]


def main(arguments: list[str]) -> int:
    notes, first, last, module, *rest = arguments
    observer = Observer(int(first), int(last))
    time_loaders(observer)
    hook = register_optimizer_step_post_hook(observer.stepped)
    try:
        return importlib.import_module(module).main(rest)
    finally:
        hook.remove()
        Path(notes).write_text(json.dumps(observer.notes()))


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))

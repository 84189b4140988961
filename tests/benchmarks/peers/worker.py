"""A process that is kept alive in a library's environment: it reads orders, one line of JSON each, and answers them.

`{"do": "build", "method": …, "size": …}`: the modes that can be measured, after one step of each.
`{"do": "steps", "mode": …, "count": …}`: the seconds that they took.
`{"do": "profile", "mode": …}`: the operators of a step, by the time in themselves.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from typing import Any

import torch

from tests.benchmarks.peers.sizes import SIZES

WARM_UP = 1
OPERATORS = 10


def _build(library: Any, order: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    built = library.build(order["method"], SIZES[order["size"]])
    failed, works = {}, []
    for mode, step in built.take.items():
        try:
            for _ in range(WARM_UP):
                step()
            works.append(mode)
        except Exception as error:
            failed[mode] = said(error)
    if built.default not in works:
        return None, {"error": failed[built.default]}
    return built, {"modes": works, "default": built.default, "failed": failed}


def _steps(step: Any, count: int) -> dict[str, Any]:
    begun = time.perf_counter()
    for _ in range(count):
        step()
    return {"seconds": (time.perf_counter() - begun) / count}


def profiled(step: Any) -> dict[str, Any]:
    """The longest operators of a step: names, seconds, shares."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    events = profile.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    longest = sorted(events, key=lambda event: -event.self_cpu_time_total)[:OPERATORS]
    return {"operators": [(event.key, event.self_cpu_time_total / 1e6, event.self_cpu_time_total / total)
                          for event in longest]}  # fmt: skip


def said(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:240]}"


def main() -> None:
    """Answer orders until the pipe is closed."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    library, built = None, None
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if order["do"] == "build":
                library = library or import_module(f"tests.benchmarks.peers.libraries.{sys.argv[1]}")
                built = None  # before the next one takes memory
                built, answer = _build(library, order)
            elif order["do"] == "steps":
                answer = _steps(built.take[order["mode"]], order["count"])
            else:
                answer = profiled(built.take[order["mode"]])
        except BaseException as error:
            answer = {"error": said(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()

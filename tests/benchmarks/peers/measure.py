"""Processes that take steps in turn, and whole runs one after the other."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.peers.contenders import LIBRARIES, OURS, Contender
from tests.benchmarks.peers.environments import ROOT
from tests.benchmarks.peers.sizes import SIZES

BUILD, STEPS, RUN = 300.0, 300.0, 600.0
"""Seconds that an order may take, and a whole run."""
REST = 0.3
"""Seconds before an order, in which the threads of the last one fall asleep."""


class MeasurementError(RuntimeError):
    """What a process reported, or that it did not answer."""


class Worker:
    """A process that takes training steps when it is told to."""

    def __init__(self, python: Path, library: str, variables: dict[str, str], log: Path) -> None:
        self._log = log.open("w")
        self._process = subprocess.Popen(
            [python, "-m", "tests.benchmarks.peers.worker", library],
            cwd=ROOT, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            start_new_session=True,
        )  # fmt: skip

    def ask(self, limit: float, **order: Any) -> dict[str, Any]:
        """The answer to an order.

        Raises:
            MeasurementError: for an error there, or if none comes in time.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps(order), file=self._process.stdin, flush=True)
        except BrokenPipeError as error:
            raise MeasurementError(f"the process ended with {self._process.wait()}: {self._last_line()}") from error
        if not select.select([self._process.stdout], [], [], limit)[0]:
            self.end()
            raise MeasurementError(f"no answer in {limit:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise MeasurementError(f"the process ended with {self._process.wait()}: {self._last_line()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise MeasurementError(answer["error"])
        return answer

    def end(self) -> None:
        """End the process and what it has started; once more does no harm."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def _last_line(self) -> str:
        lines = Path(self._log.name).read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


@dataclass
class Timing:
    """The steps of one contender at one size."""

    contender: Contender
    default: str = "float32"
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """By mode, one number a round."""
    failed: dict[str, str] = field(default_factory=dict)
    """Errors by mode."""
    error: str | None = None
    operators: list[tuple[str, float, float]] = field(default_factory=list)
    """Name, seconds, share: the longest of a step in the default mode."""

    def rate(self, mode: str, batch: int) -> float | None:
        """Images a second: the median over the rounds."""
        taken = self.seconds.get(mode)
        return batch / statistics.median(taken) if taken else None


def ratio(slower: Timing, slow: str, faster: Timing, fast: str) -> float | None:
    """How many times as fast one mode is as the other: the median over the rounds, each of which is one sitting."""
    found = ratios(slower, slow, faster, fast)
    return statistics.median(found) if found else None


def ratios(slower: Timing, slow: str, faster: Timing, fast: str) -> list[float]:
    """The ratio of each round."""
    return [a / b for a, b in zip(slower.seconds.get(slow, ()), faster.seconds.get(fast, ()), strict=False)]


def in_turn(
    contenders: list[Contender],
    start: Callable[[Contender], Worker],
    workers: dict[str, Worker],
    size: str,
    *,
    rounds: int,
    count: int,
    report: Callable[[str], None],
) -> list[Timing]:
    """Measure all at one size. The processes are started one by one, and left in `workers`."""
    timings = [Timing(contender) for contender in contenders]
    for timing in timings:
        name = timing.contender.title
        try:
            worker = workers[name] = start(timing.contender)
            answer = worker.ask(BUILD, do="build", method=timing.contender.method, size=size)
            timing.default, timing.failed = answer["default"], answer["failed"]
            timing.seconds = {mode: [] for mode in answer["modes"]}
            report(f"  {name}: ready")
        except MeasurementError as error:
            timing.error = str(error)
            report(f"  {name}: {error}")
            if name in workers:
                workers[name].end()
    for number in range(rounds):
        ready = [(timing, mode) for timing in timings if not timing.error for mode in timing.seconds]
        for timing, mode in ready if number % 2 == 0 else reversed(ready):
            worker = workers[timing.contender.title]
            if timing.error:
                continue
            time.sleep(REST)
            try:
                answer = worker.ask(STEPS, do="steps", mode=mode, count=count)
                timing.seconds[mode].append(answer["seconds"])
            except MeasurementError as error:
                timing.error = str(error)
        report(f"  round {number + 1} of {rounds}")
    return timings


def profile(timing: Timing, worker: Worker) -> None:
    """Ask for the operators of a step."""
    if not timing.error:
        try:
            whole = "one stream" if "one stream" in timing.seconds else timing.default  # all on the calling thread
            timing.operators = worker.ask(STEPS, do="profile", mode=whole)["operators"]
        except MeasurementError as error:
            timing.failed["profile"] = str(error)


@dataclass
class Run:
    """A whole run of one contender."""

    contender: Contender
    seconds: float = 0.0
    """From the start of the process to its end."""
    rate: float = 0.0
    """Images a second in the second half of the steps."""
    memory: int = 0
    """Bytes, of the largest of its processes."""
    error: str | None = None


def whole_run(
    contender: Contender,
    python: Path,
    photographs: Path,
    output: Path,
    variables: dict[str, str],
    *,
    size: str,
    steps: int,
) -> Run:
    """Train from JPEGs to the last step; an error is part of the result."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    if contender == OURS:
        command = [str(python.with_name("mpp")), *our_command(photographs, output / "run", SIZES[size].batch, steps)]
    else:
        command = [str(python), "-m", "tests.benchmarks.peers.whole_run", LIBRARIES[contender.library].module]
        command += [contender.method, str(photographs), str(output), size, str(steps)]
    run, log = Run(contender), output / "log.txt"
    variables = {**variables, "HF_HOME": str(output / "huggingface")}  # nothing prepared by an earlier run
    begun = time.perf_counter()
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
            start_new_session=True,
        )  # fmt: skip
    try:
        code, run.memory = _wait(process, begun + RUN)
    except TimeoutError:
        run.error = f"not finished after {RUN:.0f} s"
        return run
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    run.seconds = time.perf_counter() - begun
    if code:
        said = output / "error.txt"
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        run.error = said.read_text() if said.exists() else f"exit code {code}: {lines[-1] if lines else ''}"
    else:
        run.rate = _rate(output, SIZES[size].batch, steps)
    return run


def _wait(process: subprocess.Popen[bytes], deadline: float) -> tuple[int, int]:
    """The exit code, and the bytes of the largest of the process and those that it started and waited for."""
    while time.perf_counter() < deadline:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, usage.ru_maxrss * 1024
        time.sleep(0.02)
    raise TimeoutError


def our_command(photographs: Path, output: Path, batch: int, steps: int) -> list[str]:
    """The arguments of `mpp` for a whole run: the recipe for photographs, as long as the others."""
    return [
        "pretrain",
        "photos",
        f"data.source={photographs}",
        f"output_dir={output}",
        f"training.batch_size={batch}",
        f"training.duration={{steps: {steps}}}",
        "optimizer.warmup={steps: 1}",
        "optimizer.decay={steps: 1}",
        f"journal.every={{steps: {steps // 2}}}",
    ]


def _rate(output: Path, batch: int, steps: int) -> float:
    """Images a second in the second half, from the run's own log or from the time of each step."""
    half = steps // 2
    if (log := output / "run" / "metrics.jsonl").exists():
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        done = {line["step"]: line["seconds"] for line in lines if "seconds" in line}
    else:
        done = dict(enumerate(json.loads((output / "stamps.json").read_text()), start=1))
    return (steps - half) * batch / (done[steps] - done[half])

"""Measure `mpp` next to timm, Hugging Face transformers, vit-pytorch, lightly and stable-pretraining, on the CPU.

Two things are measured: the training step on images in memory, each library in a process that is kept alive, in turn;
and whole runs from a folder of JPEGs to the last step, one after the other. The environments are made by uv, one a
library, and nothing is added to that of the package. The page goes to the terminal, and to docs/speed.md with --write.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.peers import environments, photographs
from tests.benchmarks.peers.contenders import CONTENDERS, LIBRARIES, OURS, Contender
from tests.benchmarks.peers.measure import MeasurementError, Run, Timing, Worker, in_turn, profile, whole_run
from tests.benchmarks.peers.sizes import SIZES
from tests.benchmarks.peers.tables import Sitting, best_peer, machine, page

BEGUN = time.perf_counter()
PAGE = environments.ROOT / "docs" / "speed.md"
OTHERS = "# Speed of `mpp` itself"
"""The heading of the tables that other commands measured: they stay."""


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", default="", metavar="NAME,…", help=f"libraries or methods, of {', '.join(LIBRARIES)}; "
        "ours is always measured")  # fmt: skip
    add("--sizes", default="tiny,shipped", metavar="NAME,…", help=f"of {', '.join(SIZES)}; default %(default)s")
    add("--rounds", type=int, default=5, help="default %(default)s")
    add("--steps", type=int, default=1, help="steps of each process and precision in a round; default %(default)s")
    add("--run-steps", type=int, default=20, help="steps of a whole run, 0 for none; default %(default)s")
    add("--images", type=Path, metavar="FOLDER", help="real photographs for the whole runs; else they are drawn")
    add("--threads", type=int, default=2, help="of PyTorch, in every process; default %(default)s")
    add("--cache", type=Path, metavar="FOLDER", help="where environments and images stay; else a temporary folder")
    add("--quick", action="store_true", help="a rehearsal: one round of one step of few images, whole runs of 4 steps")
    add("--write", action="store_true", help="write docs/speed.md")
    asked = parser.parse_args()
    if asked.quick:
        asked.rounds, asked.steps, asked.run_steps, asked.sizes = 1, 1, min(asked.run_steps, 4), "rehearsal"
    asked.sizes = [name for name in asked.sizes.split(",") if name]
    if unknown := set(asked.sizes) - set(SIZES):
        parser.error(f"--sizes: {', '.join(sorted(unknown))} unknown; there are {', '.join(SIZES)}")
    asked.only = {name for name in asked.only.split(",") if name}
    known = {contender.library for contender in CONTENDERS} | {contender.title for contender in CONTENDERS}
    if unknown := asked.only - known:
        parser.error(f"--only: {', '.join(sorted(unknown))} unknown; there are {', '.join(LIBRARIES)}")
    if asked.quick and asked.write:
        parser.error("--write with --quick: the numbers of a rehearsal mean nothing")
    if asked.rounds < 1 or asked.steps < 1 or asked.run_steps == 1 or asked.run_steps < 0:
        parser.error("--rounds and --steps need 1 or more, --run-steps 0 or at least 2")
    return asked


def chosen(only: set[str]) -> list[Contender]:
    """The contenders that were asked for, and ours."""
    return [c for c in CONTENDERS if not only or c == OURS or only & {c.library, c.title}]


def main() -> int:
    """Measure, and write the page."""
    asked = arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the processes are ended
    if asked.cache is not None:
        return measure(asked, asked.cache.resolve())
    with tempfile.TemporaryDirectory(prefix="peers-") as cache:
        return measure(asked, Path(cache))


def measure(asked: argparse.Namespace, cache: Path) -> int:
    """Measure all that was asked for, with everything that has to be written below `cache`."""
    contenders, measured = chosen(asked.only), commit()
    pythons: dict[str, Path | str] = {}
    versions: dict[str, dict[str, str]] = {}
    for library in dict.fromkeys(contender.library for contender in contenders):
        title = LIBRARIES[library].title
        report(f"installing {title}")
        try:
            pythons[library] = python = environments.make(library, cache)
            versions[title] = environments.versions(python)
            report("  " + ", ".join(f"{name} {version}" for name, version in versions[title].items()))
        except (environments.InstallationError, subprocess.SubprocessError) as error:
            pythons[library] = f"cannot be installed: {error}"
            report(f"  {pythons[library]}")
    variables = environments.variables(cache, asked.threads)
    timings = {}
    for size in asked.sizes:
        report(f"steps: {SIZES[size].title}")
        timings[size] = steps(asked, contenders, pythons, size, variables, cache / "logs")
    runs: list[Run] = []
    count = photographs.COUNT // 16 if asked.quick else photographs.COUNT
    run_size = "rehearsal" if asked.quick else "tiny"
    source = f"{count:,} {'drawn' if asked.images is None else 'real'} images of 500 × 375 pixels"
    if asked.run_steps:
        report("whole runs: making the images")
        folder = cache / f"{'drawn' if asked.images is None else 'resized'}-{count}"
        photographs.make(folder, asked.images, count=count)
        for contender in contenders:
            if contender.whole_run:
                python, output = pythons[contender.library], cache / "runs" / f"{contender.library}-{contender.method}"
                if isinstance(python, str):
                    runs.append(Run(contender, error=python))
                    continue
                report(f"  {contender.title}")
                run = whole_run(contender, python, folder, output, variables, size=run_size, steps=asked.run_steps)
                runs.append(run)
                report(f"    {run.error or f'{run.seconds:.0f} s, {run.rate:.1f} images/s'}")
    text = page(
        Sitting(
            command=shlex.join(["python", "-m", "tests.benchmarks.peers", *shown(sys.argv[1:])]),
            machine=f"{len(os.sched_getaffinity(0))} cores, {machine()}",
            day=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
            commit=measured,
            threads=asked.threads,
            rounds=asked.rounds,
            steps=asked.steps,
            versions=versions,
            timings=timings,
            runs=runs,
            run_size=run_size,
            run_steps=asked.run_steps,
            photographs=source,
        )
    )
    print(text, flush=True)
    if asked.write:
        _, mark, rest = PAGE.read_text(encoding="utf-8").partition(OTHERS) if PAGE.exists() else ("", "", "")
        PAGE.write_text(text + (f"\n{mark}{rest}" if mark else ""), encoding="utf-8")
        report(f"written: {PAGE.relative_to(environments.ROOT)}")
    return 0


def steps(
    asked: argparse.Namespace,
    contenders: list[Contender],
    pythons: dict[str, Path | str],
    size: str,
    variables: dict[str, str],
    logs: Path,
) -> list[Timing]:
    """All steps at one size, and the profiles of ours and the best other."""  # fmt: skip
    if size not in ("tiny", "rehearsal"):  # their decoders would dwarf an encoder of this size, or take very long
        contenders = [contender for contender in contenders if contender.comparable]
    logs.mkdir(parents=True, exist_ok=True)
    workers: dict[str, Worker] = {}

    def start(contender: Contender) -> Worker:
        python, log = pythons[contender.library], logs / f"{contender.library}-{contender.method}-{size}.txt"
        if isinstance(python, str):
            raise MeasurementError(python)
        return Worker(python, LIBRARIES[contender.library].module, variables, log)

    try:
        timings = in_turn(contenders, start, workers, size, rounds=asked.rounds, count=asked.steps, report=report)
        for timing in (timings[0], best_peer(timings)):
            if timing is not None and timing.contender.title in workers:
                profile(timing, workers[timing.contender.title])
        return timings
    finally:
        for worker in workers.values():
            worker.end()


def shown(given: list[str]) -> list[str]:
    """The arguments without folders of this machine."""
    result, skip = [], False
    for argument in given:
        name = argument.partition("=")[0]
        if not skip and name in ("--cache", "--images"):
            skip = "=" not in argument
            result += [name, "FOLDER"]
        elif not skip:
            result.append(argument)
        else:
            skip = False
    return result


def commit() -> str:
    """The commit that was measured; with a mark if the package differs from it."""

    def git(*words: str) -> str:
        run = subprocess.run(["git", *words], cwd=environments.ROOT, capture_output=True, text=True, check=False)
        return run.stdout.strip()

    changed = git("status", "--porcelain", "--", "mpp", "recipes")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else "")


def report(line: str) -> None:
    """Progress, after the seconds since the start, goes to the other stream, so that the page can be piped."""
    print(f"{time.perf_counter() - BEGUN:5.0f} s  {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""See `tests/benchmarks/gpu/__init__.py`."""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import tests.benchmarks.gpu as about
from tests.benchmarks.gpu import dependencies, processes
from tests.benchmarks.gpu.bench import Bench
from tests.benchmarks.gpu.plan import NAMES, PIECES, Piece
from tests.benchmarks.gpu.record import BEGINNING, Record
from tests.benchmarks.gpu.report import write_report

FINISHED, FAILED, WRONG, LEFT = 0, 1, 2, 3
IMPORTED = ("torch._dynamo", "mpp.commands.pretrain", "matplotlib.figure", "scipy.io", "mpp.pretrain")
"""What the processes import in any case, some of it late."""
RESERVE = 5.0
"""Seconds of a call that are kept for its end."""


class StoppedError(Exception):
    """A signal asked for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(arguments: list[str] | None = None) -> int:
    begun = time.time()
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _options(arguments)
    out: Path = options.out.resolve()
    bench = Bench(
        out=out,
        work=(options.work or out / "work").resolve(),
        rehearse=options.rehearse,
        retry=options.retry,
        deadline=begun + options.seconds - RESERVE,
    )
    chosen = [piece for piece in PIECES if piece.name in (options.piece or NAMES)]
    records = [_record(bench, piece) for piece in chosen]
    if mixed := [record.piece for record in records if record.rehearsal != bench.rehearse]:
        print(f"{out} holds {'a rehearsal' if options.rehearse is False else 'measurements'} "
              f"of {', '.join(mixed)}: choose another folder", file=sys.stderr)  # fmt: skip
        return WRONG
    if options.list:
        return _list(bench)
    out.mkdir(parents=True, exist_ok=True)
    if not options.report and not all(_is_finished(bench, piece) for piece in chosen):
        lacking = dependencies.missing()
        if lacking:
            print(dependencies.advice(lacking), flush=True)
        elif for_tests := dependencies.missing_for_tests():
            print(f"for cuda_tests:\n{dependencies.advice(for_tests)}", flush=True)
        if refusal := _prepare(bench, packages=not lacking):
            print(refusal, file=sys.stderr)
            return WRONG
        able = [piece for piece in chosen if not (piece.packages and lacking)]
        try:
            _measure(bench, able, arguments)
        except StoppedError as stopped:
            print(f"stopped; {write_report(out, rehearsal=bench.rehearse)} has what was measured until now")
            return 128 + stopped.number
        finally:
            gc.unfreeze()  # or libraries complain at the end about what they think has leaked
    return _summary(bench, chosen)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu",
        description=about.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the results")
    parser.add_argument("--piece", action="append", choices=NAMES, metavar="NAME", help="only this piece")
    parser.add_argument("--seconds", type=float, default=540, help="length of this call; default: 540")
    parser.add_argument("--work", type=Path, help="folder of images, runs and logs; default: OUT/work")
    parser.add_argument("--retry", action="store_true", help="measure failed cases once more")
    parser.add_argument("--list", action="store_true", help="list the pieces, and what is finished")
    parser.add_argument("--report", action="store_true", help="only write the summary")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny sizes")
    return parser.parse_args(arguments)


def _record(bench: Bench, piece: Piece) -> Record:
    return Record.read(bench.out, piece.name, rehearsal=bench.rehearse)


def _is_finished(bench: Bench, piece: Piece) -> bool:
    record = _record(bench, piece)
    return record.complete and not (bench.retry and record.failed)


def _list(bench: Bench) -> int:
    for piece in PIECES:
        record = _record(bench, piece)
        done = len(record.results) + len(record.failures) + len(record.not_run)
        state = "finished" if record.complete else f"{done} cases finished" if done else ""
        print(f"{piece.name:22} {piece.seconds:4} s  {piece.what}{f'  [{state}]' if state else ''}")
    return FINISHED


def _prepare(bench: Bench, *, packages: bool) -> str | None:
    """Import what takes long, once for all processes; the reason, if nothing can run here."""
    bench.work.mkdir(parents=True, exist_ok=True)
    os.environ |= {"HF_HOME": str(bench.work / "cache"), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # does not start CUDA, which a fork would not survive
    if bench.rehearse:
        os.environ |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # a first compilation on a CPU takes a minute
    try:
        import torch
    except ImportError as error:
        return f"nothing can be measured without PyTorch: {error}"
    if not bench.rehearse and not torch.cuda.is_available():
        return "no CUDA device: --rehearse runs the same code on the CPU, with tiny sizes"
    if packages:
        for name in IMPORTED:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    gc.freeze()  # or every collection in a child would go through all that was imported
    return None


def _measure(bench: Bench, chosen: list[Piece], arguments: list[str]) -> None:
    """Measure piece after piece, each in a process of its own, until all are finished or the time is over."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise StoppedError(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    for piece in chosen:
        if _is_finished(bench, piece) or bench.left < RESERVE:
            continue
        print(f"{piece.name} …", flush=True)
        begun = time.monotonic()
        process = processes.start(
            "tests.benchmarks.gpu.piece",
            [piece.name, bench.as_json(), *arguments],
            bench.work / "logs" / f"{piece.name}.txt",
            leads=True,
        )
        try:  # one that hangs must not take the time of all others
            code = process.wait(min(bench.left, 60 + 3 * piece.seconds))
        except StoppedError:
            process.kill()
            raise
        process.kill_rest()
        record = _record(bench, piece)
        hung = code is None and bench.left > RESERVE
        if hung or code:  # a case that breaks its process is not tried again unless it is asked for
            why = "killed: it took far longer than estimated" if hung else f"exit code {code}"
            record.failures[record.running or BEGINNING] = f"{process.text[-4000:]}\n{why}"
            record.running = ""
            record.write(bench.out)
        print(f"  {_state(record, code)}, {time.monotonic() - begun:.0f} s", flush=True)


def _state(record: Record, code: int | None) -> str:
    failed = f"failed: {', '.join(record.failed)}" if record.failed else ""
    cut = f"no time was left for {record.running!r}" if code is None and record.running else ""
    left = f"{len(record.left)} cases left" if record.left else ""
    return "; ".join(filter(None, (failed, cut, left))) or "finished"


def _summary(bench: Bench, chosen: list[Piece]) -> int:
    path = write_report(bench.out, rehearsal=bench.rehearse)
    records = [_record(bench, piece) for piece in chosen]
    failed = {record.piece: record.failed for record in records if record.failed}
    left = [record.piece for record in records if not record.complete]
    for piece, cases in failed.items():
        print(f"failed: {piece}: {', '.join(cases)}; see {bench.out / piece}.json")
    if left:
        print(f"left for another call: {', '.join(left)}")
    print(f"summary: {path}")
    return FAILED if failed else LEFT if left else FINISHED


if __name__ == "__main__":
    sys.exit(main())

"""One piece in a process of its own: `tests.benchmarks.gpu.piece NAME BENCH`."""

from __future__ import annotations

import gc
import importlib
import os
import shlex
import sys
import time
import traceback
from importlib import metadata

from tests.benchmarks.gpu.bench import Bench, Case, NeedsGpuError
from tests.benchmarks.gpu.plan import PIECES
from tests.benchmarks.gpu.record import BEGINNING, Record

VERSIONS = ("torch", "torchvision", "timm", "accelerate", "datasets", "triton", "numpy", "pillow")


def main(arguments: list[str]) -> int:
    piece = next(piece for piece in PIECES if piece.name == arguments[0])
    bench = Bench.from_json(arguments[1])
    record = Record.read(bench.out, piece.name, rehearsal=bench.rehearse)
    record.failures.pop(BEGINNING, None)
    if piece.exact:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    module = importlib.import_module(f"tests.benchmarks.gpu.{piece.module}")
    record.command = shlex.join(["python", "-m", "tests.benchmarks.gpu", *arguments[2:]])
    record.versions = _versions()
    cases: list[Case] = getattr(module, piece.name)(bench)
    for case in cases:
        needed = 0 if bench.rehearse else case.seconds
        if not record.is_done(case.name, retry=bench.retry) and bench.left > needed:
            _measure(bench, record, case, forget=piece.module == "steps")
    record.left = [case.name for case in cases if not record.is_done(case.name, retry=False)]
    record.complete = not record.left
    record.device = _device(bench)  # last: it starts CUDA, which the runs of some pieces do for themselves
    record.write(bench.out)
    return 0


def _measure(bench: Bench, record: Record, case: Case, *, forget: bool) -> None:
    """Measure a case, and write what came of it."""
    for known in (record.results, record.failures, record.not_run):
        known.pop(case.name, None)
    record.running, record.complete = case.name, False
    record.write(bench.out)
    print(f"{case.name} …", flush=True)
    begun = time.perf_counter()
    try:
        values = case.measure()
        seconds = time.perf_counter() - begun
        record.results[case.name] = {**values, "seconds": seconds}
    except NeedsGpuError as reason:
        record.not_run[case.name] = str(reason)
    except Exception:
        record.failures[case.name] = traceback.format_exc()[-8000:]
        traceback.print_exc()
    record.seconds += time.perf_counter() - begun
    record.running = ""
    record.write(bench.out)
    if forget:
        _forget(bench)


def _forget(bench: Bench) -> None:
    """Give back the memory of a case, and what was compiled for it."""
    import torch

    torch.compiler.reset()
    gc.collect()
    if bench.cuda:
        torch.cuda.empty_cache()


def _device(bench: Bench) -> str:
    import torch

    if bench.cuda:
        return torch.cuda.get_device_name(0)
    return f"CPU, {torch.get_num_threads()} thread(s): a rehearsal"


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

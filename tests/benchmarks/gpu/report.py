"""The summary of all pieces, in Markdown, for readers who have not seen the code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.gpu.plan import PIECES
from tests.benchmarks.gpu.record import Record

Result = dict[str, Any]
Column = tuple[str, Callable[[Result], str]]


def _number(key: str, form: str = "{:,.1f}") -> Callable[[Result], str]:
    def shown(result: Result) -> str:
        value: Any = result
        for part in key.split("/"):
            value = value.get(part) if isinstance(value, dict) else None
        return "–" if value is None else form.format(value)

    return shown


def _pairs(key: str, form: str = "{:.3f}") -> Callable[[Result], str]:
    return lambda result: ", ".join(f"{name} {form.format(value)}" for name, value in result[key].items()) or "none"


STEPS: tuple[Column, ...] = (
    ("objective, ms", _number("objective/ms", "{:.2f}")),
    ("timm alone, ms", _number("bare/ms", "{:.2f}")),
    ("overhead", _number("overhead", "{:+.1%}")),
    ("images/s", _number("images_a_second", "{:,.0f}")),
    ("share of peak", _number("share_of_peak", "{:.0%}")),
    ("peak memory, GB", _number("peak_gigabytes/objective")),
)
RUNS: tuple[Column, ...] = (
    ("images/s", _number("images_a_second", "{:,.0f}")),
    ("TFLOP/s", _number("tflops", "{:,.2f}")),
    ("share of peak", _number("share_of_peak", "{:.0%}")),
    ("time spent waiting for data", _number("waited_for_data", "{:.1%}")),
    ("workers", _number("workers", "{}")),
)
KERNELS: tuple[Column, ...] = (
    ("chosen by default", _number("default", "{}")),
    ("ms, forward and backward", _pairs("ms")),
    ("refused", lambda result: ", ".join(result["refused"]) or "none"),
)
COST: tuple[Column, ...] = (("ms", _pairs("ms", "{:.2f}")), ("cost", _pairs("cost", "{:+.1%}")))
TABLES: dict[str, tuple[Column, ...]] = {
    "machine": (
        ("bfloat16, TFLOP/s", _number("bfloat16_tflops", "{:,.2f}")),
        ("float32, TFLOP/s", _number("float32_tflops", "{:,.2f}")),
        ("peak that runs are compared with, TFLOP/s", _number("peak_of_the_package_tflops", "{:,.2f}")),
        ("copy on the device, GB/s", _number("copy_gigabytes_a_second")),
        ("to the device, GB/s", _number("to_device_gigabytes_a_second")),
        ("launch, µs", _number("launch_microseconds")),
        ("memory, GB", _number("memory_gigabytes")),
        ("cores", _number("cores", "{}")),
        ("free shared memory, GB", _number("shared_memory_free_gigabytes")),
    ),
    "synchronization": (
        ("waits of the host a step", _number("total_a_step", "{:.1f}")),
        ("where", lambda r: "; ".join(f"`{w}` ×{n:g}" for w, n in r["host_waits_a_step"].items()) or "nowhere"),
        ("ms a step, profiled", _number("profile/ms_a_step", "{:.2f}")),
        ("device busy", _number("profile/busy", "{:.0%}")),
    ),
    "resume": (
        ("killed run resumed from step", _number("resumed_from", "{}")),
        ("of", _number("steps", "{}")),
        ("same final weights", _number("equal_weights", "{}")),
        ("same losses", _number("equal_losses", "{}")),
        ("SHA-256 of the weights", lambda result: result["sha256"]["resumed"]["weights"][:16] + "…"),
    ),
    "end_to_end": RUNS,
    "end_to_end_eager": RUNS,
    "overhead": STEPS,
    "batches": STEPS,
    "compiled_targets": STEPS,
    "cuda_tests": (("tests", lambda result: ", ".join(f"{n}: {t['outcome']}" for n, t in result["tests"].items())),),
    "attention": KERNELS,
    "attention_steps": KERNELS[1:],
    "determinism": COST,
    "compiled_determinism": COST,
    "memory": (
        ("peak, GB", _number("peak_gigabytes", "{:.2f}")),
        ("weights and moments, GB", _number("weights_and_moments_gigabytes", "{:.2f}")),
        ("MB an image besides", _number("megabytes_an_image", "{:.1f}")),
        ("out of memory", _number("out_of_memory", "{}")),
    ),
    "loader": (
        ("images/s", _number("images_a_second", "{:,.0f}")),
        ("a worker", _number("images_a_second_a_worker", "{:,.0f}")),
    ),
}
NOTES = {
    "overhead": "A step is forward, backward, clipping and AdamW in bfloat16, on pixels that lie on the device. Both "
    "sides are measured in turn with CUDA events; medians. Peak: the measured rate of a large matrix product.",
    "synchronization": "Ten steps of a real run, between two steps that are logged.",
    "resume": "Three processes: one that nothing interrupted, one that SIGKILL ended after a checkpoint, and the same "
    "command again. Deterministic algorithms.",
    "end_to_end": "`python -m mpp.pretrain` on JPEG files of 500 × 375 that the script has drawn, and that the "
    "operating system keeps in memory: no disk is measured.",
    "loader": "Decoding, random crop and flip of the same files, nothing else running.",
    "memory": "Eager, bfloat16, AdamW.",
}


def write_report(folder: Path, *, rehearsal: bool) -> Path:
    """Write `report.md` from the records."""
    records = {piece.name: Record.read(folder, piece.name, rehearsal=rehearsal) for piece in PIECES}
    begun = [record for record in records.values() if record.seconds]
    lines = ["# Measured on one GPU" if not rehearsal else "# Rehearsal on a CPU: the numbers mean nothing", ""]
    if begun:
        last = max(begun, key=lambda record: bool(record.device))
        lines += [
            f"{last.device or 'unfinished'}; " + ", ".join(f"{n} {v}" for n, v in last.versions.items()) + ".",
            "",
        ]
    for piece in PIECES:
        record = records[piece.name]
        lines += [f"## {piece.name}: {piece.what}", ""]
        if piece.name in NOTES:
            lines += [NOTES[piece.name], ""]
        lines += _table(record, TABLES[piece.name])
        for case, text in record.failures.items():
            lines += [f"**{case} failed**: `{text.strip().splitlines()[-1][:200]}`", ""]
        for case, reason in record.not_run.items():
            lines += [f"{case}: not run, {reason}.", ""]
        if not record.complete:
            left = record.left or ([record.running] if record.running else ["everything"])
            lines += [f"Left: {', '.join(left)}.", ""]
        elif record.seconds:
            lines += [f"Took {record.seconds:.0f} s.", ""]
    path = folder / "report.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _table(record: Record, columns: tuple[Column, ...]) -> list[str]:
    rows = [[case, *(_safe(shown, result) for _, shown in columns)] for case, result in record.results.items()]
    if not rows:
        return []
    used = [i for i in range(len(columns) + 1) if i == 0 or any(row[i] != "–" for row in rows)]
    titles = ["case", *(title for title, _ in columns)]
    table = [[titles[i] for i in used], ["---" for _ in used], *([row[i] for i in used] for row in rows)]
    return [*(f"| {' | '.join(cells)} |" for cells in table), ""]


def _safe(shown: Callable[[Result], str], result: Result) -> str:
    """A cell; a dash for a result that has no such value."""
    try:
        return shown(result).replace("|", "\\|")
    except KeyError:
        return "–"

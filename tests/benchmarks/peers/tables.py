"""The page: tables of what was measured, in Markdown."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.peers.contenders import OURS
from tests.benchmarks.peers.measure import Run, Timing, ratio, ratios
from tests.benchmarks.peers.sizes import SIZES

TARGET, OVERHEAD = 1.3, 0.03
MARK = "\u2009×"


class Sitting(NamedTuple):
    """All that was measured."""

    command: str
    machine: str
    day: str
    commit: str
    threads: int
    rounds: int
    steps: int
    versions: dict[str, dict[str, str]]
    """By the title of the library."""
    timings: dict[str, list[Timing]]
    """By size."""
    runs: list[Run]
    run_size: str
    run_steps: int
    photographs: str


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    head = list(head)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def page(sitting: Sitting) -> str:
    """The whole page."""
    parts = [
        "# Speed next to other libraries",
        f"Written by `{sitting.command}` on {sitting.day}, at commit {sitting.commit}. {sitting.machine}; PyTorch with "
        f"{counted(sitting.threads, 'thread')}, no GPU. Random weights, nothing is downloaded.",
        "Each library runs in a process and an environment of its own, and only one process works at a time. "
        f"The numbers are medians of {counted(sitting.rounds, 'round')}; in a round every process takes "
        f"{counted(sitting.steps, 'step')} in each precision, one process after the other, so that a slow minute "
        "of the machine slows all of them. A ratio is the median of the ratios of the rounds.",
    ]
    for size, timings in sitting.timings.items():
        parts += _steps(size, timings)
    if sitting.runs:
        parts += _whole_runs(sitting)
    parts += ["## Versions", table(["library", "versions"], _versions(sitting))]
    return "\n\n".join(parts) + "\n"


def _versions(sitting: Sitting) -> Iterable[list[str]]:
    for title, found in sitting.versions.items():
        yield [title, ", ".join(f"{name} {version}" for name, version in found.items())]


def _steps(size: str, timings: list[Timing]) -> list[str]:
    shape, ours = SIZES[size], next((timing for timing in timings if timing.contender == OURS), None)
    rows = []
    for timing in timings:
        them = timing.contender
        title = f"**{them.title}**" if them == OURS else them.title
        start = [title, them.predicts, str(them.tokens(shape.patches))]
        if timing.error:
            rows.append([*start, "does not run", "", "", "", ""])
            continue
        rates = [_rate(timing, mode, shape.batch) for mode in ("float32", "bfloat16")]
        ratios = ["", "", ""]
        if ours is not None and not ours.error and timing is not ours:
            modes = [(timing.default, ours.default), ("float32", "float32"), ("bfloat16", "bfloat16")]
            ratios = [_times(ratio(timing, theirs, ours, mine)) for theirs, mine in modes]
        rows.append([*start, *rates, *ratios])
    head = ["", "predicts", "tokens in the encoder", "float32, images/s", "bfloat16, images/s",
            "mpp is as fast, own defaults", "both float32", "both bfloat16"]  # fmt: skip
    parts = [
        f"## A training step: {shape.title}",
        "Forward, backward, clipping, AdamW, on images that are in memory. The default of each is in bold: for `mpp` "
        "the precision of the recipe (`auto`: bfloat16 where the processor has instructions for it), for the others "
        "float32, as their documentation starts them on a CPU. The column bfloat16 is `torch.autocast`.",
        table(head, rows),
        *_errors(timings),
    ]
    if any(timing.contender.visible < 1 for timing in timings):
        parts.append(
            "MAE drops three quarters of the patches before the encoder, which so does about a quarter of the work, "
            "but has a decoder that sees all of them, here wider than the encoder. It is another method: compare the "
            "rows with as many tokens as `mpp`."
        )
    if ours is not None and not ours.error:
        parts += _targets(timings, ours, shape.batch)
    return parts


def _rate(timing: Timing, mode: str, batch: int) -> str:
    rate = timing.rate(mode, batch)
    if rate is None:
        return "fails" if mode in timing.failed else ""
    return f"**{rate:.1f}**" if mode == timing.default else f"{rate:.1f}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}{MARK}"


def _errors(timings: list[Timing]) -> list[str]:
    lines = [f"- {timing.contender.title} does not run: `{timing.error}`" for timing in timings if timing.error]
    for timing in timings:
        lines += [f"- {timing.contender.title}, {mode}: `{error}`" for mode, error in timing.failed.items()]
    return ["\n".join(lines)] if lines else []


def _targets(timings: list[Timing], ours: Timing, batch: int) -> list[str]:
    """The two targets, whether they are reached, and where the time goes."""
    parts, best = [], best_peer(timings)
    if best is not None and (times := ratios(best, best.default, ours, ours.default)):
        parts.append(
            f"Target: at least {TARGET} times the best comparable library, each with its own defaults. The best is "
            f"{best.contender.title} with {best.rate(best.default, batch):.1f} images/s; `mpp` is "
            f"{statistics.median(times):.2f} times as fast ({spread(times)}): "
            f"{_verdict(statistics.median(times) >= TARGET)}."
        )
    if more := [value - 1 for value in ratios(ours, "one stream", ours, "bare")]:
        parts.append(
            f"Target: at most {OVERHEAD:.0%} more time than timm's encoder and the same head alone, without corruption "
            "and labels, in the same process and precision, both in one stream. Measured: "
            f"{statistics.median(more):+.1%} ({spread(more, '+.1%')}): {_verdict(statistics.median(more) <= OVERHEAD)}."
        )
    for timing in (ours, best):
        if timing is not None and timing.operators:
            where = "in one stream, " if "one stream" in timing.seconds else ""
            rows = [[f"`{name}`", f"{1000 * seconds:.1f}", f"{share:.1%}"] for name, seconds, share in timing.operators]
            parts += [
                f"Where a step of {timing.contender.title} goes ({where}{timing.default}, PyTorch's profiler, time on "
                "the calling thread):",
                table(["operator", "ms", "share"], rows),
            ]
    return parts


def _verdict(reached: bool) -> str:
    return "reached" if reached else "**not reached**"


def counted(number: int, noun: str) -> str:
    """A number of things, in words."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def spread(values: list[float], form: str = ".2f") -> str:
    """The lowest and the highest of the rounds, in words."""
    return f"{min(values):{form}} to {max(values):{form}} in single rounds"


def best_peer(timings: list[Timing]) -> Timing | None:
    """The fastest comparable one but ours, each with its own default."""
    peers = [t for t in timings if t.contender.comparable and t.contender != OURS and not t.error]
    peers = [timing for timing in peers if timing.seconds.get(timing.default)]
    return max(peers, key=lambda timing: timing.rate(timing.default, 1) or 0.0) if peers else None


def _whole_runs(sitting: Sitting) -> list[str]:
    rows = []
    for run in sitting.runs:
        title = f"**{run.contender.title}**" if run.contender == OURS else run.contender.title
        if run.error:
            rows.append([title, "does not run", "", ""])
        else:
            rows.append([title, f"{run.seconds:.0f}", f"{run.rate:.1f}", f"{run.memory / 2**30:.1f}"])
    errors = [f"- {run.contender.title}: `{run.error}`" for run in sitting.runs if run.error]
    head = ["", "start to end, s", "images/s, second half of the steps", "memory of the largest process, GiB"]
    return [
        f"## A whole run: {sitting.run_steps} steps from JPEGs on disk",
        f"{SIZES[sitting.run_size].title}; {sitting.photographs}; two processes decode and crop. One run each, from "
        "the start of the process to its end: imports, finding the images, training, saving the weights. Each in its "
        "own default precision and with its own crops, by a short program in the style of its documentation (Hugging "
        "Face's and Lightning's trainers, timm's loader). `mpp pretrain photos` does more within its time: it holds "
        "out a split, measures two baselines and the held-out loss, writes checkpoints, reconstructions and the "
        "encoder.",
        table(head, rows),
        *(["\n".join(errors)] if errors else []),
    ]


def machine() -> str:
    """The processor, in words."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    for line in text.splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
    able = [title for flag, title in (("avx512_bf16", "AVX-512 bfloat16"), ("amx_bf16", "AMX")) if flag in text]
    return f"{name} with {', '.join(able)}" if able else name

"""What the settings of a run give on this machine: `python -m tests.benchmarks.settings [recipe] [ti] [s]`.

Each variant is a run of `mpp pretrain` as a user starts it. All of them are started, then stopped but for one at a time
(SIGSTOP, SIGCONT), in turn: a noisy machine hits all alike. Images a second are those of the steps that lie within a
turn, by the run's own metrics log; medians over the turns. Ratios are to the first variant.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ENDLESS = ("training.duration.steps=1000000", "journal.every.steps=1", "validation.every.steps=0",
           "checkpoint.every.steps=0", "reconstructions.images=0", "validation.baseline_images=256",
           "validation.images=32", "checkpoint.resume=false", "optimizer.warmup.steps=100")  # fmt: skip
AT_224 = ("data.image_size=224", "encoder.patch_size=null", "encoder.arguments={}", "training.batch_size=32")
MODELS = {
    "recipe": ((), "recipes/mean_color.yaml: width 128, depth 4, 32 px, patch 4, batch 128"),
    "ti": ((*AT_224, "encoder.name=vit_tiny_patch16_224"), "ViT-Ti/16, 224 px, batch 32"),
    "s": ((*AT_224, "encoder.name=vit_small_patch16_224"), "ViT-S/16, 224 px, batch 32"),
}
"""Overrides of the recipe `mean_color`, and words."""
GIVEN_BACK = (
    "import mpp.cli, mpp.pretrain, sys; mpp.cli.keep_freed_memory = lambda: None; mpp.pretrain.main(sys.argv[1:])"
)
COMMAND = ("-m", "mpp.pretrain")
VARIANTS: dict[str, tuple[tuple[str, ...], dict[str, str], tuple[str, ...]]] = {
    "one stream, memory given back": (("-c", GIVEN_BACK), {}, ("training.streams=1",)),
    "one stream": (COMMAND, {}, ("training.streams=1",)),
    "as shipped": (COMMAND, {}, ()),
    "memory given back": (("-c", GIVEN_BACK), {}, ()),
    "huge pages": (COMMAND, {"THP_MEM_ALLOC_ENABLE": "1"}, ()),
    "residual bfloat16": (COMMAND, {}, ("training.residual=bfloat16",)),
    "compiled": (COMMAND, {}, ("training.compile=true",)),
    "compiled, residual bfloat16": (COMMAND, {}, ("training.compile=true", "training.residual=bfloat16")),
    "fused attention": (COMMAND, {}, ("encoder.attention=fused",)),
    "two processes": (COMMAND, {}, ("--processes", "2")),
    "two processes, residual bfloat16": (COMMAND, {}, ("training.residual=bfloat16", "--processes", "2")),
    "one thread": (COMMAND, {}, ("training.threads=1",)),
    "float32": (COMMAND, {}, ("training.precision=float32",)),
}
"""How Python is called, its environment, and what is added to the command."""


class Paused:
    """A run in its own processes, which moves only in its turns."""

    def __init__(self, name: str, model: str, folder: Path) -> None:
        how, environment, changes = VARIANTS[name]
        self.name, self._folder = name, folder / name.replace(" ", "_")
        command = [
            sys.executable,
            *how,
            "mean_color",
            f"output_dir={self._folder}",
            *ENDLESS,
            *MODELS[model][0],
            *changes,
        ]
        self._log = (folder / f"{self._folder.name}.txt").open("w")
        clean = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        self._process = psutil.Popen(
            command, env={**clean, **environment}, stdout=self._log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        self.rates: list[float] = []
        while self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE and len(self._lines()) < 4:
            time.sleep(0.2)
        if self._process.status() == psutil.STATUS_ZOMBIE:
            raise RuntimeError(f"{name} ended: {Path(self._log.name).read_text()[-1000:]}")
        self._signal(signal.SIGSTOP)

    def turn(self, seconds: float) -> None:
        """Run for a while, and at least three steps; the first one may have been begun before."""
        before = len(self._lines())
        self._signal(signal.SIGCONT)
        begun = time.monotonic()
        while time.monotonic() - begun < seconds or len(self._lines()) < before + 4:
            time.sleep(0.05)
        self._signal(signal.SIGSTOP)
        steps = self._lines()[before:]
        images = steps[-1]["samples"] - steps[0]["samples"]
        self.rates.append(images / (steps[-1]["seconds"] - steps[0]["seconds"]))

    def end(self) -> None:
        """Kill its processes."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def _lines(self) -> list[dict[str, float]]:
        path = self._folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def _signal(self, number: int) -> None:
        for process in (self._process, *self._process.children(recursive=True)):
            process.send_signal(number)


def measure(model: str, names: list[str], rounds: int, seconds: float) -> list[str]:
    """Rows of a table in Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        runs: list[Paused] = []
        try:
            for name in names:
                runs.append(Paused(name, model, Path(folder)))
                print(f"{model}: {name} is running", file=sys.stderr, flush=True)
            for _ in range(rounds):
                for run in runs:
                    run.turn(seconds)
        finally:
            for run in runs:
                run.end()
    first = runs[0].rates
    rows = [f"| {MODELS[model][1]} | images/s | ratio, its range over the turns |", "|---|---|---|"]
    for run in runs:
        ratios = [rate / other for rate, other in zip(run.rates, first, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append(f"| {run.name} | {statistics.median(run.rates):.1f} | {spread} |")
    return rows


def main() -> int:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), help=f"some of {', '.join(MODELS)}")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), help="the first is what others are divided by")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="of a turn")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or runs that are stopped would be left behind
    for model in given.models:
        print("\n".join(measure(model, given.variants, given.rounds, given.seconds)), end="\n\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

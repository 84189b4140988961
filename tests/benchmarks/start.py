"""How long a first run takes: `python -m tests.benchmarks.start [--against CHECKOUT] [--rounds N] [--whole]`.

In turn: bare imports of torch, timm, datasets and accelerate; the start of `mpp pretrain mean_color` up to the end of
its first step; with `--whole` also the whole run, 300 steps. `--against` measures another checkout of this repository
with the same environment, in the same turns. Medians, in seconds. The embedded images are drawn before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent.parent.parent
BARE = "import torch, timm, datasets, accelerate, os; os._exit(0)"
"""Without what they do at the end of a process, which takes another second."""


def seconds(*arguments: str, cwd: Path) -> float:
    """Wall-clock seconds of a Python process."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    begun = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def first_step(checkout: Path) -> float:
    """Seconds from the start of the command to the line of its first step, which is written at once."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        command = subprocess.Popen(
            [sys.executable, "-m", "mpp.pretrain", "recipes/mean_color.yaml", f"output_dir={folder}/run",
             "journal.every.steps=1", "training.duration.steps=4"],
            cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert command.stdout is not None
        found = next(time.perf_counter() - begun for line in command.stdout if line.startswith("step 1/"))
        command.communicate()
    return found


def whole(checkout: Path) -> float:
    """Seconds of the first line of the README, of an installed package."""
    with tempfile.TemporaryDirectory() as folder:
        return seconds("-m", "mpp.pretrain", "recipes/mean_color.yaml", f"output_dir={folder}/run", cwd=checkout)


def main() -> int:
    """Measure in turn, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--whole", action="store_true", help="the whole run, too; one round")
    given = parser.parse_args()
    checkouts = {"this checkout": HERE} | ({"the other": given.against.resolve()} if given.against else {})
    measured: dict[str, list[float]] = {"bare imports": []}
    for name in checkouts:
        first_step(checkouts[name])  # draws the images, compiles to bytecode
        measured[f"first step, {name}"] = []
    seconds("-c", BARE, cwd=HERE)
    for _ in range(given.rounds):
        measured["bare imports"].append(seconds("-c", BARE, cwd=HERE))
        for name, checkout in checkouts.items():
            measured[f"first step, {name}"].append(first_step(checkout))
    if given.whole:
        for name, checkout in checkouts.items():
            measured[f"whole run, {name}"] = [whole(checkout)]
    print("| | seconds | over bare imports |\n|---|---|---|")
    bare = statistics.median(measured["bare imports"])
    for name, values in measured.items():
        ratio = statistics.median(values) / bare
        print(f"| {name} | {statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f}) | {ratio:.2f} |")
    print(
        json.dumps({name: [round(value, 2) for value in values] for name, values in measured.items()}), file=sys.stderr
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

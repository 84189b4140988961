"""A gap study that takes seconds, what its folder holds, and how it is stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

import mpp
from mpp.study.results import Row, read, select
from tests.support.downstream import ENCODER, SIZE
from tests.support.forkserver import Command

GAP = f"""\
command: gap
output_dir: OUTPUT
study: {{arms: [random, scratch, mean_color, supervised], seeds: [0, 1]}}
upstream: {{source: UPSTREAM, image_size: {SIZE}, crop_scale: [0.5, 1.0], workers: 0}}
downstream: {{source: SOURCE, image_size: {SIZE}, crop_scale: [0.5, 1.0], workers: 0}}
encoder: {ENCODER.replace("depth: 2", "depth: 1")}
pretraining:
  optimizer: {{lr: 1.0e-3, warmup: {{steps: 2}}}}
  training: {{batch_size: 16, duration: {{steps: 12}}, precision: float32, threads: 1}}
  validation: {{every: {{steps: 4}}, images: 16, baseline_images: 32}}
  checkpoint: {{every: {{steps: 4}}}}
  evaluation: {{every: {{steps: 4}}, evaluators: [knn], k: [3]}}
evaluation:
  labels: {{dev: 0.2}}
  few_shot: {{shots: [1, 5], seeds: [0, 1]}}
  knn: {{k: [5]}}
  linear_probe: {{grid: [0.01]}}
finetuning:
  fractions: [0.5]
  optimizer: {{lr: 3.0e-3, warmup: {{steps: 1}}}}
  training: {{batch_size: 8, duration: {{steps: 12}}, precision: float32, threads: 1}}
  validation: {{every: {{steps: 0}}}}
  checkpoint: {{every: {{steps: 4}}}}
"""
Study = Callable[..., Command]
ALONE = ("study.controls=false",)
PILOT = "study.pilot={reserved: 0.2, lr: [1.0e-3, 3.0e-3], finetuning_lr: [1.0e-3, 1.0e-2]}"


def gap_recipe(folder: Path, *changes: str, text: str = GAP) -> Any:
    """The recipe, for tests that open no images."""
    path = folder / "gap.yaml"
    path.write_text(text.replace("OUTPUT", str(folder / "gap")).replace("UPSTREAM", "a").replace("SOURCE", "b"))
    return mpp.load_recipe(path, changes)


def unit(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name / "unit.json").read_text())


def rows(folder: Path, name: str) -> list[Row]:
    """The numbers of a unit, without what a clock says."""
    return [row for row in read(unit(folder, name)["rows"]) if "second" not in row.metric]


def value(folder: Path, name: str, **where: Any) -> float:
    [row] = select(rows(folder, name), **where)
    return row.value


def finished(folder: Path) -> dict[str, int]:
    """The finished units, and when they were."""
    return {str(path.parent.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("unit.json")}


def images_of(run: Path) -> str:
    """How many images a run was trained on, and a digest of them and their labels."""
    state = max((run / "checkpoints").glob("step-*/state.json"))
    found = json.loads(state.read_text())["data"]
    return f"{found['rows']} {found['sha256']}"


def until(command: Command, condition: Callable[[], Any], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert command.alive, command.text
        assert time.monotonic() < end, command.text
        time.sleep(0.002)


def children(command: Command) -> list[psutil.Process]:
    return psutil.Process(command.pid).children(recursive=True)


def kill_all(command: Command) -> None:
    """SIGKILL to the study and to the process of its unit."""
    units = children(command)
    assert len(units) == 1
    for process in [psutil.Process(command.pid), *units]:
        process.kill()
    command.wait()

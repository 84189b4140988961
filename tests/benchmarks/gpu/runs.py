"""Whole runs, and what feeds them: synchronisation, resume, end to end, the loader, tests/test_cuda.py."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.benchmarks.gpu.bench import Bench, Case, workers
from tests.benchmarks.gpu.images import folder_of_images

ROOT = Path(__file__).parents[3]
RECIPE = ROOT / "recipes" / "imagenet" / "mean_color.yaml"
IMAGES = 2000
LOADED = 3000
"""Images of a window in which the loader is measured."""


def _images(bench: Bench) -> Path:
    return folder_of_images(bench.work, IMAGES if bench.cuda else 24)[0]


# ---- what makes the host wait


def synchronization(bench: Bench) -> list[Case]:
    """A real run, ten steps between two logged ones."""
    return [Case("ViT-Ti/16, eager", 25, partial(_synchronization, bench))]


def _synchronization(bench: Bench) -> dict[str, Any]:
    every, first, last = (20, 22, 32) if bench.cuda else (14, 2, 12)
    observed, _ = _observed_run(
        bench,
        "synchronization",
        "Ti",
        batch=256,
        steps=3 * every - 2,
        every=every,
        window=(first, last),
        compiled=False,
    )
    return {
        "steps": last - first,
        "how": "torch.cuda.set_sync_debug_mode" if bench.cuda else "operations that would make the host wait for a GPU",
        "host_waits_a_step": {line: count / (last - first) for line, count in observed["host_waits"].items()},
        "total_a_step": sum(observed["host_waits"].values()) / (last - first),
        "profile": observed["profile"],
    }


# ---- end to end


def end_to_end(bench: Bench) -> list[Case]:
    """Pre-training from JPEG files by the command, as fast as it can be."""
    return [Case("ViT-B/16, batch 256, compiled", 120, partial(_end_to_end, bench, "B", compiled=True))]


def end_to_end_eager(bench: Bench) -> list[Case]:
    """The same, not compiled; ViT-S/16 asks for more images."""
    return [
        Case("ViT-B/16, batch 256, eager", 50, partial(_end_to_end, bench, "B", compiled=False)),
        Case("ViT-S/16, batch 256, eager", 35, partial(_end_to_end, bench, "S", compiled=False)),
    ]


def _end_to_end(bench: Bench, model: str, *, compiled: bool) -> dict[str, Any]:
    every, windows = (25, 8) if bench.cuda else (2, 3)
    observed, lines = _observed_run(
        bench, f"end_to_end_{model}_{compiled}", model,
        batch=256, steps=every * windows, every=every, window=(0, 0), compiled=compiled,
    )  # fmt: skip
    settled = lines[2:] if bench.cuda else lines[1:]  # compilation and full queues are behind
    begin, end = settled[0]["step"] - every, settled[-1]["step"] - 1
    waited = [seconds for step, seconds in observed["waits"] if begin <= step < end]
    wall = observed["ends"][end - 1] - observed["ends"][begin - 1]
    drawn = json.loads((bench.work / "images.json").read_text())
    return {
        "steps": end - begin,
        "images_a_second": statistics.median(line["images_per_second"] for line in settled),
        "share_of_peak": statistics.median(line["share_of_peak"] for line in settled),
        "tflops": statistics.median(line["tflops_per_second"] for line in settled),
        "images_a_second_by_wall_clock": (end - begin) * bench.batch(256) / wall,
        "waited_for_data": sum(waited) / wall,
        "longest_wait_seconds": max(waited),
        "workers": workers(15) if bench.cuda else 1,
        "image_files": drawn,
    }


def _observed_run(
    bench: Bench, name: str, model: str, *, batch: int, steps: int, every: int, window: tuple[int, int], compiled: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What was observed of a run, and the lines of its metrics log that have a speed."""
    folder, notes = bench.fresh_folder(name), bench.work / "runs" / f"{name}.json"
    settings = bench.recipe(
        model, _images(bench), batch=batch, steps=steps, workers=workers(15), training__compile=compiled,
        checkpoint__every__steps=0, journal__every__steps=every, output_dir=folder,
    )  # fmt: skip
    bench.run(name, "tests.benchmarks.gpu.observed", notes, *window, "mpp.pretrain", RECIPE, *settings)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return json.loads(notes.read_text()), [line for line in lines if "images_per_second" in line]


# ---- resume after a kill


def resume(bench: Bench) -> list[Case]:
    """Deterministic runs, killed by SIGKILL at a checkpoint."""
    return [
        Case("eager", 40, partial(_resume, bench, compiled=False)),
        Case("compiled", 110, partial(_resume, bench, compiled=True)),
    ]


def _resume(bench: Bench, *, compiled: bool) -> dict[str, Any]:
    name, (steps, every) = ("compiled" if compiled else "eager"), ((24, 6) if bench.cuda else (6, 2))
    folder = bench.fresh_folder(f"resume_{name}")
    settings = bench.recipe(
        "Ti", _images(bench), batch=64, steps=steps, workers=workers(8), training__compile=compiled,
        training__deterministic=True, checkpoint__every__steps=every, journal__every__steps=1,
    )  # fmt: skip

    def command(run: str) -> tuple[str, ...]:
        return "mpp.pretrain", str(RECIPE), *settings, f"output_dir={folder / run}"

    bench.run(f"resume_{name}_straight", *command("straight"))
    process = bench.start(f"resume_{name}_killed", *command("killed"))
    bench.until(process, (folder / "killed" / "checkpoints" / f"step-{2 * every:09d}").is_dir)
    process.kill()
    again = bench.run(f"resume_{name}_resumed", *command("killed")).text
    found = re.search(r"from step (\d+)", again)
    resumed_from = int(found[1]) if found else 0
    hashes = {run: _hashes(folder / run, steps) for run in ("straight", "killed")}
    losses = {run: _losses(folder / run) for run in ("straight", "killed")}
    equal = hashes["straight"] == hashes["killed"]
    return {
        "ok": equal and losses["straight"] == losses["killed"] and 0 < resumed_from < steps,
        "steps": steps,
        "killed_by": process.poll(),
        "resumed_from": resumed_from,
        "equal_weights": equal,
        "equal_losses": losses["straight"] == losses["killed"],
        "sha256": {"uninterrupted": hashes["straight"], "resumed": hashes["killed"]},
        "last_loss": losses["straight"][-1],
    }


def _hashes(run: Path, steps: int) -> dict[str, str]:
    files = {
        "weights": run / "checkpoints" / f"step-{steps:09d}" / "weights.safetensors",
        "optimizer": run / "checkpoints" / f"step-{steps:09d}" / "optimizer.safetensors",
        "encoder": run / "encoder" / "model.safetensors",
    }
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def _losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


# ---- the loader


def loader(bench: Bench) -> list[Case]:
    """By the number of processes."""
    counts = [count for count in (4, 8, 12, 15) if count == min(count, workers(15))] if bench.cuda else [1, 2]
    return [Case(f"{count} workers", 10, partial(_loader, bench, count)) for count in counts]


def _loader(bench: Bench, count: int) -> dict[str, Any]:
    from mpp.data.loader import TrainingCrops, batches
    from mpp.data.sampler import plan_batches
    from mpp.data.settings import DataSettings
    from mpp.data.splits import open_splits

    settings = DataSettings(source=str(_images(bench)), image_size=bench.image_size, crop_scale=(0.05, 1.0))
    crops = TrainingCrops(open_splits(settings, 0).train, settings, 0)
    size = bench.batch(256)
    window, windows = (-(-LOADED // size), 3) if bench.cuda else (2, 2)
    first = 2 * count  # batches that lie ready when measuring begins would count as fast ones
    numbers = plan_batches(size, None).micro_batches(0, first + window * windows)
    loaded = batches(crops, numbers, workers=count, pin=bench.cuda)
    for _ in itertools.islice(loaded, first):
        pass
    rates = []
    for _ in range(windows):
        begun = time.perf_counter()
        for _ in itertools.islice(loaded, window):
            pass
        rates.append(window * size / (time.perf_counter() - begun))
    return {
        "workers": count,
        "images_a_second": statistics.median(rates),
        "windows": rates,
        "images_a_second_a_worker": statistics.median(rates) / count,
    }


# ---- the tests that need a GPU


def cuda_tests(bench: Bench) -> list[Case]:
    """tests/test_cuda.py; what compiles comes last."""
    return [
        Case("as the processor", 70, partial(_cuda_tests, bench, "not killed")),
        Case("a killed run, eager", 40, partial(_cuda_tests, bench, "killed and false")),
        Case("a killed run, compiled", 130, partial(_cuda_tests, bench, "killed and true")),
    ]


def _cuda_tests(bench: Bench, chosen: str) -> dict[str, Any]:
    from tests.benchmarks.gpu.dependencies import missing_for_tests

    if lacking := missing_for_tests():
        raise RuntimeError(f"missing: {', '.join(map(str, lacking))}")
    name = f"cuda_tests_{chosen.replace(' ', '_')}"
    report = bench.work / f"{name}.xml"
    report.unlink(missing_ok=True)
    process = bench.start(
        name, "pytest", "-o", "addopts=", "-v", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", chosen,
        f"--junitxml={report}", ROOT / "tests" / "test_cuda.py",
    )  # fmt: skip
    code = process.wait(max(bench.left, 1.0))
    if not report.is_file():
        raise RuntimeError(f"no report, exit code {code}:\n{process.text[-4000:]}")
    outcomes = {}
    for test in ElementTree.parse(report).iter("testcase"):
        kinds = [child for child in test if child.tag in ("failure", "error", "skipped")]
        outcome = kinds[0].tag if kinds else "passed"
        detail = (kinds[0].text or kinds[0].get("message") or "")[-2000:] if kinds else ""
        outcomes[test.get("name")] = {"outcome": outcome, "seconds": float(test.get("time") or 0), "detail": detail}
    if not bench.cuda and all(test["outcome"] == "skipped" for test in outcomes.values()):
        bench.need_gpu()
    return {"ok": code == 0, "tests": outcomes}

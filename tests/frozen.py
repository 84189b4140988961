"""One short run of every command and every objective, and the hashes of what comes out: behaviour, frozen.

    python -m tests.frozen write        run everything, write tests/frozen.json
    python -m tests.frozen check        run everything, compare; 1 if something differs

Weights are equal bit for bit only on the same processor and library versions, which the file names.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_suffix(".json")
SMALL = (
    "data.image_size=32", "encoder.arguments.embed_dim=48", "encoder.arguments.depth=2",
    "encoder.arguments.num_heads=3", "data.workers=0", "data.cache=false",
)  # fmt: skip
TRAIN = (
    *SMALL, "training.batch_size=16", "training.duration={steps: 6}", "training.precision=float32",
    "training.threads=1", "validation.images=32", "optimizer.warmup={steps: 2}", "validation.every={steps: 3}",
    "checkpoint.every={steps: 3}", "journal.every={steps: 2}",
)  # fmt: skip
PRETRAIN = (*TRAIN, "validation.baseline_images=200", "reconstructions.images=2", "reconstructions.every={steps: 3}")
FEW_LABELS = ("labels.fraction=0.02", "data.validation_split='test[:100]'")
EVALUATE = (
    "data.workers=0", *FEW_LABELS, "data.image_size=32", "compute.threads=1", "compute.precision=float32",
    "few_shot.shots=[1, 3]", "knn.k=[5, 10]", "linear_probe.grid=[0.01, 1.0]", "controls=false",
)  # fmt: skip
FINETUNE = (*TRAIN, *FEW_LABELS, "encoder.pool=token")
STUDY = (
    "upstream.source=embedded:a", "upstream.classes=null", "upstream.crop_scale=[0.3, 1.0]",
    "downstream.source=embedded:b", "downstream.classes=null", "downstream.crop_scale=[0.3, 1.0]",
    "pretraining.optimizer.warmup={steps: 10}", "pretraining.validation.every={steps: 25}",
    "pretraining.checkpoint.every={steps: 50}", "pretraining.evaluation.every={steps: 25}",
    "finetuning.optimizer.warmup={steps: 10}", "finetuning.validation.every={steps: 20}",
    "finetuning.checkpoint.every={steps: 40}",
    "upstream.image_size=32", "downstream.image_size=32", "upstream.workers=0", "downstream.workers=0",
    "upstream.cache=false", "encoder.arguments.embed_dim=48", "encoder.arguments.depth=2",
    "encoder.arguments.num_heads=3", "encoder.pool=token", "study.arms=[random, scratch, mean_color, supervised]",
    "study.seeds=[0, 1]", "study.controls=true", "pretraining.training.batch_size=16",
    "pretraining.training.duration={steps: 3}", "pretraining.training.precision=float32",
    "pretraining.training.threads=1", "pretraining.validation.images=16", "pretraining.validation.baseline_images=100",
    "finetuning.training.batch_size=16",
    "finetuning.training.duration={steps: 3}", "finetuning.training.precision=float32",
    "finetuning.training.threads=1", "finetuning.validation.images=16", "evaluation.labels.fraction=0.02",
    "downstream.validation_split='test[:100]'", "evaluation.few_shot.shots=[1, 3]", "evaluation.knn.k=[5]",
    "evaluation.linear_probe.grid=[0.01, 1.0]", "finetuning.fractions=[0.05]",
)  # fmt: skip
RUNS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "mean_color": ("pretrain", "mean_color", PRETRAIN),
    "mean_color_accumulated": ("pretrain", "mean_color", (*PRETRAIN, "training.micro_batch_size=4")),
    "downsized": ("pretrain", "downsized", (*PRETRAIN, "encoder.patch_size=8")),
    "full_patch": ("pretrain", "full_patch", PRETRAIN),
    "full_patch_normalized": ("pretrain", "full_patch", (*PRETRAIN, "objective.target.normalize=true")),
    "supervised": ("pretrain", "supervised", PRETRAIN),
    "evaluate": ("evaluate", "few_shot", (*EVALUATE, "encoder=RUNS/mean_color")),
    "raw_pixels": ("evaluate", "few_shot", (*EVALUATE, "encoder=raw_pixels")),
    "finetune": ("finetune", "finetune", (*FINETUNE, "encoder.source=RUNS/mean_color")),
    "scratch": ("finetune", "finetune", (*FINETUNE, "augmentation.mixup=0.2")),
    "search": (
        "finetune",
        "finetune",
        (*FINETUNE, "search.lr=[0.001, 0.01]", "early_stopping.patience=0", "encoder.source=RUNS/mean_color"),
    ),
    "linear_probe": ("finetune", "linear_probe", (*FINETUNE, "encoder.source=RUNS/mean_color")),
    "gap": ("gap", "gap", STUDY),
}  # fmt: skip


def machine() -> str:
    """What weights depend on besides the code: versions, and the processor's instructions."""
    import timm
    import torch

    flags = ""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        flags = next(line for line in lines if line.startswith("flags"))
    digest = hashlib.sha256(flags.encode()).hexdigest()[:8]
    return f"torch {torch.__version__}, timm {timm.__version__}, flags {digest}"


def run_everything(folder: Path) -> dict[str, Any]:
    """The hashes and numbers of every run, by its name."""
    recipes = Path(__file__).parent.parent / "recipes"
    found: dict[str, Any] = {}
    for name, (command, recipe, overrides) in RUNS.items():
        runs = folder / "runs"
        given = [override.replace("RUNS", str(runs)) for override in overrides]
        main = importlib.import_module(f"mpp.{command}").main
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(recipes / f"{recipe}.yaml"), *given, f"output_dir={runs / name}"])
        if code:
            raise SystemExit(f"{name} ended with {code}:\n{err.getvalue()}")
        found[name] = outcome(runs / name)
        print(f"{name}: {len(found[name])} files", flush=True)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        push = importlib.import_module("mpp.push").main
        assert push([str(folder / "runs/mean_color"), "me/it", "--dry-run", "--folder", str(folder / "push")]) == 0
    found["push"] = outcome(folder / "push") | {"files": sorted(p.name for p in (folder / "push").iterdir())}
    return found


def outcome(folder: Path) -> dict[str, Any]:
    """The hash of each file of weights, and each file of results without times and paths."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors" and "features" not in name:
            found[name] = digest(path)
        elif path.name == "results.json":
            found[name] = numbers(json.loads(path.read_text(encoding="utf-8")))
    return found


def digest(path: Path) -> str:
    """A hash of a file's tensors, by name."""
    from safetensors.numpy import load_file

    digest = hashlib.sha256()
    for name, value in sorted(load_file(path).items()):
        digest.update(name.encode() + value.tobytes())
    return digest.hexdigest()[:16]


def numbers(results: Any, keys: tuple[str, ...] = ()) -> dict[str, float]:
    """The measured numbers of results by their dotted path; no times, no settings."""
    if isinstance(results, dict):
        left = {
            key: value for key, value in results.items() if key not in ("recipe", "recipes", "seconds", "units", "rows")
        }
        return {path: value for key, below in left.items() for path, value in numbers(below, (*keys, key)).items()}
    if isinstance(results, list):
        return {path: v for key, below in enumerate(results) for path, v in numbers(below, (*keys, f"{key}")).items()}
    measured = isinstance(results, float) and not re.search(r"seconds|per_second|peak|flops_per_second", keys[-1])
    return {".".join(keys): round(results, 6)} if measured else {}


def differences(before: dict[str, Any], now: dict[str, Any], path: str = "") -> list[str]:
    """Every leaf that differs, with both values."""
    found: list[str] = []
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{path}{key} ")
        elif old != new:
            found.append(f"{path}{key}: {old} then, {new} now")
    return found


def main() -> int:
    """Write or check."""
    os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        found = {"machine": machine(), **run_everything(Path(folder))}
    if sys.argv[1:] == ["write"]:
        FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return 0
    changed = differences(json.loads(FILE.read_text(encoding="utf-8")), found)
    print("\n".join(changed[:60]) or "all as it was")
    return bool(changed)


if __name__ == "__main__":
    sys.exit(main())

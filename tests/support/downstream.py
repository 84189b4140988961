"""What is done with a pre-trained encoder, small: tinted images whose class can be learnt, recipes, whole commands."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file
from torchvision.transforms.v2 import functional as F

from tests.support.forkserver import as_two as as_two
from tests.support.forkserver import good as good
from tests.support.forkserver import refused as refused
from tests.support.forkserver import start_two as start_two
from tests.support.runs import encoded, write_parquet

TINTS = ((26, -13, -13), (-13, 26, -13), (-13, -13, 26))
TRAIN, TEST, PATCH, SIZE = 90, 45, 4, 16

ENCODER = "{name: vit_tiny_patch16_224, patch_size: 4, arguments: {embed_dim: 32, depth: 2, num_heads: 2}}"

PRETRAIN = f"""\
command: pretrain
output_dir: OUTPUT
data: {{source: SOURCE, image_size: {SIZE}, crop_scale: [0.5, 1.0], workers: 0}}
encoder: {ENCODER}
objective: {{kind: masked_patch}}
optimizer: {{lr: 1.0e-3, warmup: {{steps: 2}}}}
training: {{batch_size: 16, duration: {{steps: 8}}, precision: float32, threads: 1}}
validation: {{every: {{steps: 0}}, images: 16, baseline_images: 32}}
checkpoint: {{every: {{steps: 4}}}}
journal: {{every: {{steps: 1}}}}
reconstructions: {{images: 0}}
"""

EVALUATE = f"""\
command: evaluate
data: {{source: SOURCE, image_size: {SIZE}, workers: 0}}
encoder: {ENCODER}
labels: {{dev: 0.2}}
features: {{batch_size: 32}}
few_shot: {{shots: [1, 5], seeds: [0, 1]}}
knn: {{k: [5, 10]}}
linear_probe: null
controls: false
compute: {{precision: float32, threads: 1}}
"""

FINETUNE = f"""\
command: finetune
output_dir: OUTPUT
data: {{source: SOURCE, image_size: {SIZE}, crop_scale: [0.5, 1.0], workers: 0}}
labels: {{dev: 0.2}}
encoder: {ENCODER}
optimizer: {{lr: 3.0e-3, warmup: {{steps: 2}}}}
training: {{batch_size: 16, duration: {{steps: 12}}, precision: float32, threads: 1}}
validation: {{every: {{steps: 4}}}}
checkpoint: {{every: {{steps: 4}}}}
journal: {{every: {{steps: 1}}}}
"""


def tinted(count: int, seed: int, tints: Sequence[Sequence[int]] = TINTS) -> list[tuple[str, bytes]]:
    """20×24 images of coarse noise, each with the tint of its class, which is its number modulo their count."""
    rng = np.random.default_rng(seed)
    images = []
    for number in range(count):
        coarse = rng.integers(30, 226, (5, 6, 3)) + np.array(tints[number % len(tints)])
        image = Image.fromarray(np.kron(coarse, np.ones((4, 4, 1), np.int64)).astype(np.uint8))
        images.append((f"{seed}-{number:03d}.png", encoded(image)))
    return images


def tinted_data(folder: Path, train: int = TRAIN, test: int = TEST, seed: int = 0) -> Path:
    """A Parquet data set of three classes in turn."""
    for split, count, offset in (("train", train, 0), ("test", test, 1)):
        labels = [number % 3 for number in range(count)]
        write_parquet(folder / f"{split}.parquet", tinted(count, seed + offset), labels)
    return folder


def written(path: Path, text: str, source: Path | str, output: Path | str = "") -> Path:
    """A recipe file about this data."""
    path.write_text(text.replace("SOURCE", str(source)).replace("OUTPUT", str(output)))
    return path


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def untimed(found: dict[str, Any]) -> dict[str, Any]:
    """Results without what a clock says, and where they were written."""
    return {name: value for name, value in found.items() if name not in ("seconds", "recipe")}


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def journal(run: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` without what a clock says."""
    timed = ("seconds", "images_per_second", "tflops", "share_of_peak")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(timed)} for line in lines]


def final_weights(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:09d}" / "weights.safetensors"


def features_on_disk(folder: Path, rows: int) -> dict[str, Any]:
    """The tensors of the one file of features with so many rows."""
    found = [tensors for path in folder.glob("*.safetensors") if len((tensors := load_file(path))["labels"]) == rows]
    assert len(found) == 1, f"{len(found)} files of {rows} features in {folder}"
    return found[0]


def crops(path: Path, size: int = SIZE) -> tuple[torch.Tensor, list[int]]:
    """The evaluation crops and labels of a Parquet file."""
    table = parquet.read_table(path)
    images = []
    for cell in table["image"].to_pylist():
        pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(cell["bytes"])))).permute(2, 0, 1)
        images.append(F.center_crop(F.resize(pixels, [size], antialias=True), [size, size]))
    return torch.stack(images), table["label"].to_pylist()

"""Whole runs of `python -m mpp.pretrain` on a tiny data set, and what they leave behind."""

from __future__ import annotations

import atexit
import functools
import hashlib
import io
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from tests.support.forkserver import Command, ForkServer, as_two
from tests.support.model_hub import ModelHub

RECIPES = Path(__file__).parents[2] / "recipes"

TINY = {
    "seed": "0",
    "data.image_size": "16",
    "data.workers": "0",
    "encoder.name": "test_vit",
    "encoder.patch_size": "4",
    "optimizer.lr": "1e-3",
    "optimizer.warmup.steps": "2",
    "training.batch_size": "8",
    "training.micro_batch_size": "8",
    "training.compile": "false",
    "training.precision": "float32",
    "training.threads": "1",  # as many under a launcher as without one, whatever OMP_NUM_THREADS says
    "checkpoint.every.steps": "10",
    "checkpoint.keep": "3",
    "journal.every.steps": "1",
}


def arguments(run: Path, source: Path | str, *changes: str) -> list[str]:
    """Tiny settings, then `changes`; no setting twice."""
    given = dict(change.split("=", 1) for change in changes)
    return [f"{k}={v}" for k, v in {**TINY, "data.source": str(source), "output_dir": str(run), **given}.items()]


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@functools.cache
def hub() -> ModelHub:
    """What every command takes for the Hub."""
    served = ModelHub()
    atexit.register(served.__exit__)
    return served.__enter__()


@functools.cache
def server() -> ForkServer:
    """The warm process that commands are forked from, which knows no Hub but the one here."""
    kept = {k: v for k, v in os.environ.items() if not re.match(r"HF_TOKEN|HUGGING|MPP_|WORLD_SIZE|(LOCAL_)?RANK", k)}
    libraries = {
        "HF_ENDPOINT": hub().endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DISABLE_SAFETENSORS_CONVERSION": "1",
        "PYTHONUNBUFFERED": "1",
    }
    started = ForkServer(Path(tempfile.mkdtemp()), env=kept | libraries)
    atexit.register(started.close)
    return started


def start(recipe: str | Path, settings: Iterable[str], **env: str) -> Command:
    """Start a pre-training; a recipe without a folder is a shipped one."""
    return server().start("mpp.pretrain", RECIPES / recipe, *settings, **env)


def pretrain(recipe: str | Path, settings: Iterable[str], **env: str) -> Command:
    """The same, to its end."""
    return server().run("mpp.pretrain", RECIPES / recipe, *settings, **env)


def pretrain_all(jobs: dict[str, tuple[str | Path, list[str]]]) -> dict[str, Command]:
    """Several runs in one process, one after the other."""
    return server().in_turn({n: ("mpp.pretrain", [RECIPES / recipe, *given]) for n, (recipe, given) in jobs.items()})


def pretrain_as_two(recipe: str | Path, settings: Iterable[str], **env: str) -> list[Command]:
    """One run of two processes, by rank; no launcher is there to end the one when the other has failed."""
    both = as_two(server(), "mpp.pretrain", free_port(), RECIPES / recipe, *settings, **env)
    assert all(command.group_is_gone() for command in both), "loader processes outlived the run"
    return both


def journal(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> dict[int, float]:
    """Training loss by step."""
    return {row["step"]: row["loss"] for row in journal(run) if "loss" in row}


def weights(run: Path) -> dict[str, str]:
    """The type and hash of every tensor, which a failing comparison can show."""
    tensors = load_file(run / "encoder" / "model.safetensors")
    return {
        name: f"{value.dtype} {hashlib.sha256(value.tobytes()).hexdigest()}" for name, value in sorted(tensors.items())
    }


def progress(checkpoint: Path) -> int:
    """Its step."""
    return int(checkpoint.name.removeprefix("step-"))


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoint folders, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def older_by(run: Path, *settings: str) -> None:
    """As a version before these settings of the data wrote the run down."""
    import yaml

    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    for setting in settings:
        del recipe["data"][setting]
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for folder in checkpoints(run):
        state = json.loads((folder / "state.json").read_text())
        for setting in settings:
            del state["recipe"]["data"][setting]
        (folder / "state.json").write_text(json.dumps(state))
        manifest = json.loads((folder / "manifest.json").read_text())
        content = (folder / "state.json").read_bytes()
        manifest["state.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (folder / "manifest.json").write_text(json.dumps(manifest))


def largest_file(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(height: int = 12, width: int = 20, seed: int = 0) -> Image.Image:
    """Noise of three colours."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def scene(number: int, height: int = 20, width: int = 24) -> np.ndarray:
    """Coarse blotches with a little noise; no two numbers alike."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(20, 236, (-(-height // 5), -(-width // 5), 3))
    full = coarse.repeat(5, 0).repeat(5, 1)[:height, :width] + rng.integers(-20, 20, (height, width, 3))
    return full.astype(np.uint8)


def write_parquet(path: Path, images: list[tuple[str, bytes]], labels: list[int] | None = None) -> None:
    """A Parquet file in the Hugging Face image format."""
    import datasets

    columns: dict = {"image": [{"bytes": content, "path": name} for name, content in images]}
    features: dict = {"image": datasets.Image()}
    if labels is not None:
        columns["label"] = labels
        features["label"] = datasets.ClassLabel(names=["one", "two", "three"])
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(str(path))


def parquet_folder(folder: Path, train: list[tuple[str, bytes]], labelled: bool = False) -> Path:
    """`train` beside eight sound test images."""
    test = [(f"test-{i}.png", encoded(Image.fromarray(scene(1000 + i)))) for i in range(8)]
    for split, images in (("train", train), ("test", test)):
        write_parquet(folder / f"{split}.parquet", images, [i % 3 for i in range(len(images))] if labelled else None)
    return folder


def scenes(count: int) -> list[tuple[str, bytes]]:
    return [(f"scene-{i:03d}.png", encoded(Image.fromarray(scene(i)))) for i in range(count)]


@dataclass
class Stopped:
    """A run that SIGTERM stopped, and the way back to that very state."""

    run: Path
    settings: list[str]
    command: Command
    snapshot: Path

    def restore(self) -> None:
        shutil.rmtree(self.run)
        shutil.copytree(self.snapshot, self.run)

    def again(self, *changes: str) -> Command:
        given = dict(setting.split("=", 1) for setting in (*self.settings, *changes))
        return pretrain("mean_color.yaml", [f"{key}={value}" for key, value in given.items()])

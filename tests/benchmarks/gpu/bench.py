"""What every case is given: the device, the sizes, the folders, the time that is left."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.benchmarks.gpu.processes import POLL, Process, start

if TYPE_CHECKING:
    import torch

    from mpp.encoder.encoder import Encoder

MODELS = {
    "Ti": "vit_tiny_patch16_224",
    "S": "vit_small_patch16_224",
    "B": "vit_base_patch16_224",
    "L": "vit_large_patch16_224",
    "H": "vit_huge_patch14_224",
}
TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
"""Every model of a rehearsal."""


class NeedsGpuError(Exception):
    """A case has nothing to measure on a CPU."""


class Case(NamedTuple):
    """A measurement."""

    name: str
    seconds: float
    """Estimated for one H100; a case is begun only if so much time is left."""
    measure: Callable[[], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where and how a call measures."""

    out: Path
    work: Path
    rehearse: bool
    retry: bool
    deadline: float
    """Unix time at which this call ends."""

    def as_json(self) -> str:
        """For the arguments of a process."""
        return json.dumps(asdict(self) | {"out": str(self.out), "work": str(self.work)})

    @classmethod
    def from_json(cls, text: str) -> Bench:
        """The inverse of `as_json`."""
        values = json.loads(text)
        return cls(**{**values, "out": Path(values["out"]), "work": Path(values["work"])})

    @property
    def left(self) -> float:
        """Seconds until the call ends."""
        return self.deadline - time.time()

    @property
    def cuda(self) -> bool:
        """Whether this call measures a GPU."""
        return not self.rehearse

    @property
    def device(self) -> torch.device:
        """The GPU, or in a rehearsal the CPU."""
        import torch

        return torch.device("cuda" if self.cuda else "cpu")

    @property
    def image_size(self) -> int:
        """Pixels a side of a crop."""
        return 224 if self.cuda else 32

    def batch(self, size: int) -> int:
        """A batch size; 4 in a rehearsal."""
        return size if self.cuda else 4

    def need_gpu(self) -> None:
        """Raise unless this call measures a GPU."""
        if not self.cuda:
            raise NeedsGpuError("needs a GPU")

    def encoder(self, model: str) -> Encoder:
        """An encoder with random weights, as a run would have it on this device."""
        import mpp

        encoder = mpp.create_encoder(
            MODELS[model if self.cuda else "Ti"], image_size=self.image_size, **({} if self.cuda else TINY)
        )
        encoder.use_fused_attention(self.cuda)
        return encoder

    def recipe(self, model: str, images: Path, *, batch: int, steps: int, workers: int, **further: object) -> list[str]:
        """Overrides of recipes/imagenet/mean_color.yaml for a short run; in `further` `__` stands for a dot."""
        size = self.batch(batch)
        settings: dict[str, object] = {
            "data.source": images,
            "data.image_size": self.image_size,
            "data.workers": workers if self.cuda else 1,
            "encoder.name": MODELS[model if self.cuda else "Ti"],
            "training.batch_size": size,
            "training.micro_batch_size": size,
            "training.duration.steps": steps,
            "training.precision": "bfloat16" if self.cuda else "float32",
            "optimizer.warmup.steps": 2,
            "validation.every.steps": 0,
            "validation.images": 64 if self.cuda else 2,
            "validation.baseline_images": 64 if self.cuda else 2,
            "reconstructions.images": 0,
        }
        if not self.cuda:
            inside = {name: value for name, value in TINY.items() if name != "patch_size"}
            settings |= {"encoder.patch_size": TINY["patch_size"], "encoder.arguments": json.dumps(inside)}
        settings |= {name.replace("__", "."): value for name, value in further.items()}
        return [
            f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in settings.items()
        ]

    def start(self, log: str, module: str, *arguments: object, **env: str) -> Process:
        """Start a command as a process."""
        device = {} if self.cuda else {"ACCELERATE_USE_CPU": "true"}
        return start(module, arguments, self.work / "logs" / f"{log}.txt", **device, **env)

    def run(self, log: str, module: str, *arguments: object, **env: str) -> Process:
        """The same, to its end; a RuntimeError with its output if it fails."""
        process = self.start(log, module, *arguments, **env)
        return self.good(process)

    def good(self, process: Process) -> Process:
        """Wait for the end of a process; a RuntimeError with its output if it fails."""
        code = process.wait(max(self.left, 1.0))
        if code != 0:
            ended = f"exit code {code}" if code is not None else "killed: no time was left"
            raise RuntimeError(f"{ended}:\n{process.text[-4000:]}")
        return process

    def until(self, process: Process, condition: Callable[[], Any]) -> None:
        """Wait for what has to come true while a process runs."""
        while not condition():
            if process.poll() is not None:
                raise RuntimeError(f"exit code {process.poll()}, too early:\n{process.text[-4000:]}")
            if self.left <= 0:
                process.kill()
                raise RuntimeError(f"killed: no time was left:\n{process.text[-4000:]}")
            time.sleep(POLL)

    def fresh_folder(self, name: str) -> Path:
        """The path of a folder that does not exist; one of an earlier call is removed."""
        import shutil

        folder = self.work / "runs" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        return folder


def workers(most: int) -> int:
    """Loader processes: one core is left for the main process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(most, cores - 1), 1)

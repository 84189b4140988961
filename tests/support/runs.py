"""Whole runs of `python -m mpp.pretrain` on a tiny data set, and what they leave behind."""

import atexit
import contextlib
import functools
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from safetensors.numpy import load_file

import mpp
from tests.support.forkserver import Command, ForkServer

_spec = importlib.util.find_spec("mpp")
assert _spec is not None
assert _spec.origin is not None
RECIPES = Path(_spec.origin).resolve().parents[1] / "recipes"

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
    "training.threads": "1",  # as many under a launcher as without one, whatever OMP_NUM_THREADS says
    "checkpoint.every.steps": "10",
    "checkpoint.keep": "3",
}


@functools.cache
def accepted(*choices: str) -> tuple[str, ...]:
    """The first of several spellings that the recipe takes (none if it takes none)."""
    for choice in choices:
        with contextlib.suppress(Exception):
            mpp.load_recipe(RECIPES / "mean_color.yaml", overrides=[choice])
            return (choice,)
    return ()


def float32() -> str:
    found = accepted("training.precision=float32", "training.precision=fp32", "training.precision=no")
    assert found, "no known spelling of float32 is a value of training.precision"
    return found[0]


def arguments(run: Path, source: Path | str, *changes: str) -> list[str]:
    """Tiny settings, then `changes`; no setting twice."""
    every_step = accepted("journal.every.steps=1")
    base = {**TINY, "data.source": str(source), "output_dir": str(run)}
    for change in (float32(), *every_step, *changes):
        key, value = change.split("=", 1)
        base[key] = value
    return [f"{key}={value}" for key, value in base.items()]


def environment(**extra: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "HF_ENDPOINT")}
    return clean | {"HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true", "PYTHONUNBUFFERED": "1"} | extra


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def alone() -> list[str]:
    return [sys.executable, "-m", "mpp.pretrain"]


def launched() -> list[str]:
    here = ["--cpu", "--num_processes", "1"] if torch.cuda.is_available() else []  # or it would choose the GPUs
    return [sys.executable, "-m", "accelerate.commands.launch", *here, "-m", "mpp.pretrain"]


def launched_twice() -> list[str]:
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--main_process_port", free_port(), "-m", "mpp.pretrain"),
    ]


class Forked:
    """The part of `Popen` that is used here, for a command that was forked off a warm process."""

    def __init__(self, command: Command):
        self.command, self.pid = command, command.pid

    @property
    def returncode(self) -> int | None:
        if self.command.alive:
            return None
        return -signal.SIGKILL if self.command.code is None else self.command.code

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        self.command.kill(number)

    def wait(self, timeout: float = 600) -> int:
        end = time.monotonic() + timeout
        while (code := self.returncode) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("forked", timeout)
            time.sleep(0.005)
        return code


@functools.cache
def server() -> ForkServer:
    """The warm process that commands without a launcher are forked from."""
    started = ForkServer(Path(tempfile.mkdtemp()))
    atexit.register(started.close)
    return started


class Process:
    """A started command in a process group of its own; what it says goes to a file."""

    def __init__(self, command: Iterable[str], folder: Path, **env: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / f"log-{time.monotonic_ns()}.txt"
        command = list(command)
        if command[:3] == alone():
            started = server().start("mpp.pretrain", *command[3:], cwd=folder, **env)
            self.log, self.popen = started.output, Forked(started)
            return
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                list(command), stdout=log, stderr=subprocess.STDOUT, cwd=folder, env=environment(**env),
                start_new_session=True,
            )  # fmt: skip

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, timeout: float = 600) -> int:
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running after {timeout} s:\n{self.output}") from None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()

    def until(self, condition: Callable[[], bool], timeout: float = 400) -> None:
        """Wait for `condition`, which has to come true while the command is running."""
        end = time.monotonic() + timeout
        while not condition():
            if self.popen.poll() is not None or time.monotonic() > end:
                self.kill()
                raise AssertionError(f"ended ({self.popen.returncode}) or hung too early:\n{self.output}")
            time.sleep(0.005)

    def group_is_gone(self, timeout: float = 60) -> bool:
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if not any(self._alive(process) for process in psutil.process_iter()):
                return True
            time.sleep(0.1)
        return False

    def _alive(self, process: psutil.Process) -> bool:
        try:
            return os.getpgid(process.pid) == self.popen.pid and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, OSError):
            return False


@dataclass
class Result:
    returncode: int
    output: str


def pretrain(recipe: str | Path, settings: Iterable[str], folder: Path, command=None, timeout=600, **env) -> Result:
    process = Process([*(command or alone()), str(RECIPES / recipe), *settings], folder, **env)
    return Result(process.wait(timeout), process.output)


def pretrain_as_two(recipe: str | Path, settings: Iterable[str], folder: Path, timeout=400, **env) -> list[Result]:
    """One run of two processes, by rank; no launcher is there to end the one when the other has failed."""
    places = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    places |= {"ACCELERATE_USE_CPU": "true"} | env
    command = [*alone(), str(RECIPES / recipe), *settings]
    processes = [Process(command, folder, RANK=rank, LOCAL_RANK=rank, **places) for rank in "01"]
    try:
        results = [Result(process.wait(timeout), process.output) for process in processes]
        assert all(process.group_is_gone() for process in processes), "loader processes outlived the run"
    finally:
        for process in processes:
            process.kill()
    return results


def pretrain_all(jobs: dict[str, tuple[str | Path, list[str]]], folder: Path) -> dict[str, Result]:
    """Several commands, two at a time."""
    server()  # one for both
    with ThreadPoolExecutor(2) as pool:
        running = {name: pool.submit(pretrain, *job, folder / f"logs-{name}") for name, job in jobs.items()}
        return {name: job.result() for name, job in running.items()}


def assert_succeeds(result: Result) -> None:
    assert result.returncode == 0, result.output
    assert "Traceback" not in result.output


def assert_refused(result: Result, *words: str) -> None:
    """A user's mistake: a non-zero exit of its own accord, one clear message, no traceback."""
    assert result.returncode > 0, f"exit {result.returncode}:\n{result.output}"
    assert "Traceback" not in result.output, result.output
    message = " ".join(result.output.split())  # which are wrapped for a terminal
    for word in words:
        assert word in message, f"{word!r} is not in:\n{result.output}"


def journal(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> dict[int, float]:
    """Training loss by step."""
    names = ("loss", "train/loss", "train_loss")
    found = {row["step"]: row[name] for row in journal(run) for name in names if name in row}
    assert found, f"no training loss in {journal(run)[:3]}"
    return found


def weights(run: Path) -> dict[str, str]:
    """The type and hash of every tensor, which a failing comparison can show."""
    tensors = load_file(run / "encoder" / "model.safetensors")
    return {
        name: f"{value.dtype} {hashlib.sha256(value.tobytes()).hexdigest()}" for name, value in sorted(tensors.items())
    }


def progress(checkpoint: Path) -> int:
    """The last number in the name: steps or images."""
    return int(re.findall(r"\d+", checkpoint.name)[-1])


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoint folders, oldest first."""
    if not (run / "checkpoints").is_dir():
        return []
    folders = [p for p in (run / "checkpoints").iterdir() if p.is_dir() and re.fullmatch(r"[A-Za-z_=-]*\d+", p.name)]
    return sorted(folders, key=progress)


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
    result: Result
    snapshot: Path

    def restore(self) -> None:
        shutil.rmtree(self.run)
        shutil.copytree(self.snapshot, self.run)

    def again(self, *changes: str) -> Result:
        keys = {change.split("=", 1)[0] for change in changes}
        kept = [setting for setting in self.settings if setting.split("=", 1)[0] not in keys]
        return pretrain("mean_color.yaml", [*kept, *changes], self.run.parent)

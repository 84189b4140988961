"""What the tests of publishing share: small runs, what a push says, where things must not be found."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from mpp.hub.folder import WRITTEN
from tests.support.downstream import results
from tests.support.forkserver import ForkServer, good

FILES = {
    "README.md",
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "recipe.yaml",
    "objective.safetensors",
    "metrics.jsonl",
    "loss.png",
    "reconstructions.png",
}
PLANTED = {
    "USER": "planted-alice",
    "LOGNAME": "planted-alice",
    "HOSTNAME": "planted-host-17",
    "WANDB_API_KEY": "planted-0123456789abcdef",
    "AWS_SECRET_ACCESS_KEY": "planted/wJalrXUtnFEMI/K7MDENG",
    "DATABASE_PASSWORD": "planted-correct-horse",
}
"""In the environment of every command here."""
FAMILIES = {
    "gap": "{name: vit_tiny_patch16_224, pool: avg, patch_size: 4, arguments: {embed_dim: 32, depth: 2, num_heads: 2}}",
    "distilled": "{name: deit_tiny_distilled_patch16_224, patch_size: 4, "
    "arguments: {embed_dim: 32, depth: 2, num_heads: 2}}",
    "hybrid": "{name: vit_tiny_r_s16_p8_224, arguments: {embed_dim: 32, depth: 1, num_heads: 2}}",
    "eva": "{name: eva02_tiny_patch14_224, patch_size: 4, arguments: {embed_dim: 32, depth: 2, num_heads: 2}}",
}
ONE_STEP = "training.duration.steps=1"
NAME = "user/vit-tiny"


@dataclass(frozen=True)
class Pushed:
    """What a push said, and how long it would have waited."""

    code: int | None
    text: str
    waits: list[float]


Push = Callable[..., Pushed]


def snapshot(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def arrived(pushed: Pushed) -> Pushed:
    assert pushed.code == 0, pushed.text
    return pushed


def failed(pushed: Pushed, *words: str, code: int = 1) -> Pushed:
    """One message that says what to do."""
    assert pushed.code == code, f"{pushed.code}: {pushed.text}"
    assert pushed.text.count("error: ") == 1, pushed.text
    message = pushed.text[pushed.text.index("error: ") :]
    for word in (*words, "same command again"):
        assert word in message, f"{word!r} is not in:\n{pushed.text}"
    return pushed


def load_back(online: ForkServer, folder: Path, *jobs: str, **env: str) -> tuple[dict[str, torch.Tensor], str]:
    command = good(online.run("tests.support.load_back", folder / "found.safetensors", *jobs, cwd=folder, **env))
    return load_file(folder / "found.safetensors"), command.text


def measured(run: Path) -> dict[str, Any]:
    """The one evaluation of a run."""
    (folder,) = (run / "evaluation").iterdir()
    return results(folder)


def staged(push: Push, run: Path, folder: Path, *options: object, **env: str) -> dict[str, bytes]:
    arrived(push(run, NAME, "--dry-run", "--folder", folder, *options, **env))
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != WRITTEN}


def card(text: bytes | str) -> Any:
    return ModelCard(text.decode() if isinstance(text, bytes) else text)

"""How a fine-tuning is looked at from outside: its journal, its weights, its classifier in timm alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file

from tests.support.downstream import journal
from tests.support.forkserver import Command

Finetune = Callable[..., Command]


def looked(run: Path) -> dict[int, tuple[float, float]]:
    """By step what the dev split said: accuracy, and the loss below zero, so that more is better."""
    lines = [line for line in journal(run) if "validation/accuracy" in line]
    return {line["step"]: (line["validation/accuracy"], -line["validation/loss"]) for line in lines}


def best_weights(run: Path) -> dict[str, torch.Tensor]:
    [path] = run.glob("best-*.safetensors")
    return load_file(path)


def steps_said(command: Command) -> list[int]:
    return [int(step) for step in re.findall(r"^step +(\d+)/", command.text, re.MULTILINE)]


def by_timm(run: Path, pixels: torch.Tensor) -> torch.Tensor:
    """What timm's own model with the exported classifier says, and nothing of ours."""
    model: Any = timm.create_model(f"local-dir:{run / 'classifier'}", pretrained=True).eval()
    config = model.pretrained_cfg
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        return model((pixels.float() / 255 - mean) / std)

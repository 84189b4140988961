"""The weights of the step that is best on the dev split, while early stopping waits for a better one."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from mpp.files import replacing


def best_weights(folder: Path, step: int) -> Path:
    """The weights of a step that was the best on the dev split so far."""
    return folder / f"best-{step:09d}.safetensors"


def keep_only(folder: Path, step: int) -> None:
    """Delete the weights of all other steps."""
    for path in folder.glob("best-*.safetensors"):
        if path != best_weights(folder, step):
            path.unlink()


def save_weights(objective: torch.nn.Module, path: Path) -> None:
    """Write all weights of an objective."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in objective.state_dict().items()}
    with replacing(path) as draft:
        save_file(tensors, draft)

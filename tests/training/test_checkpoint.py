"""The state of a checkpoint can be read without its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mpp.training.checkpoint import STATE, WEIGHTS, CheckpointError, Checkpoints


def test_the_newest_state_is_read_without_the_weights(tmp_path: Path):
    checkpoints, module = Checkpoints(tmp_path, keep=2), nn.Linear(1, 1)
    assert checkpoints.newest_state() is None
    for step in (3, 12):
        folder = checkpoints.save(step, module, torch.optim.AdamW(module.parameters()), {"flops_per_image": step / 2})
    (folder / WEIGHTS).unlink()
    state = checkpoints.newest_state()
    assert state is not None
    assert (state["step"], state["flops_per_image"]) == (12, 6.0)
    (folder / STATE).write_text("{")
    with pytest.raises(CheckpointError, match=rf"step-000000012/{STATE} cannot be read"):
        checkpoints.newest_state()

"""`mpp`: the step of `mpp pretrain photos`, in the precision and with the attention that it chooses by itself."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

import mpp
from mpp.commands.train_run import uses_fused_attention
from mpp.training.distributed import precision, start_processes
from mpp.training.optimizer import make_optimizer
from mpp.training.streams import Streams, number_of_streams
from tests.benchmarks.peers.libraries.step import Steps
from tests.benchmarks.peers.sizes import Size


def build(method: str, size: Size) -> Steps:
    """The steps in the chosen precision and in the other, and, as `bare`, that of timm's encoder and head alone."""
    overrides = [
        f"training.batch_size={size.batch}",
        f"data.image_size={size.image_size}",
        f"encoder.patch_size={size.patch_size}",
        f"encoder.arguments={{embed_dim: {size.width}, depth: {size.depth}, num_heads: {size.heads}}}",
    ]
    recipe = mpp.load_recipe("photos", overrides)
    accelerator = start_processes(recipe.training, folder=Path())
    encoder = mpp.create_encoder(
        recipe.encoder.name, image_size=size.image_size, patch_size=size.patch_size, **recipe.encoder.arguments
    )
    encoder.use_fused_attention(uses_fused_attention(recipe.encoder.attention, accelerator))
    objective = mpp.MaskedPatchPrediction(encoder)
    bare = objective.bare(size.batch)
    pixels = torch.randint(0, 256, (size.batch, 3, size.image_size, size.image_size), dtype=torch.uint8)
    samples = torch.arange(size.batch)
    chosen = precision(recipe.training)
    other = "float32" if chosen == "bfloat16" else "bfloat16"

    def context(mode: str) -> AbstractContextManager[Any]:
        if mode == chosen:
            return accelerator.autocast()
        return nullcontext() if mode == "float32" else torch.autocast("cpu", torch.bfloat16)

    streams = Streams(objective, number_of_streams(recipe.training, objective, size.batch, accelerator))

    def gradient(module: nn.Module, mode: str) -> torch.Tensor:
        if module is objective and mode != "one stream":
            parts = streams.backward({"pixels": pixels, "samples": samples}, 1.0, lambda: context(mode))
            return torch.stack([part.prediction.loss.detach() for part in parts]).mean()
        with context(chosen):
            loss = module() if module is bare else module(pixels, samples).loss
        loss.backward()
        return loss.detach()

    def step(module: nn.Module, optimizer: torch.optim.Optimizer, mode: str) -> None:
        loss = gradient(module, mode)
        norm = nn.utils.clip_grad_norm_(module.parameters(), recipe.training.clip_grad)
        if math.isfinite(loss) and math.isfinite(norm):
            optimizer.step()
        optimizer.zero_grad()

    optimizers = [make_optimizer(module.train(), recipe.optimizer) for module in (objective, bare)]
    take = {
        chosen: lambda: step(objective, optimizers[0], chosen),
        other: lambda: step(objective, optimizers[0], other),
        "one stream": lambda: step(objective, optimizers[0], "one stream"),
        "bare": lambda: step(bare, optimizers[1], "one stream"),
    }
    return Steps(take, default=chosen)

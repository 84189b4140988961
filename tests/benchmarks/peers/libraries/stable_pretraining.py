"""stable-pretraining: its SimMIM and MAE; whole runs with Lightning's trainer, as its documentation shows."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.benchmarks.peers.libraries.step import CLIP, DECAY, RATE, Steps, adamw, crops, images, loader, steps
from tests.benchmarks.peers.sizes import Size


def _model(method: str, size: Size) -> nn.Module:
    from timm.models import create_model

    vit = create_model(
        "vit_tiny_patch16_224",
        img_size=size.image_size,
        patch_size=size.patch_size,
        embed_dim=size.width,
        depth=size.depth,
        num_heads=size.heads,
        num_classes=0,
    )
    methods = import_module("stable_pretraining.methods")
    if method == "mae":
        return methods.MAE(vit)
    return methods.SimMIM(vit, patch_size=size.patch_size, image_size=size.image_size)


def build(method: str, size: Size) -> Steps:
    model, pixels = _model(method, size), images(size)
    return steps(model, lambda: model(pixels).loss, adamw(model))


def train(method: str, size: Size, folder: Path, output: Path, count: int, stamp: Callable[[], None]) -> None:
    from torchvision.datasets import ImageFolder

    lightning: Any = import_module("lightning")

    class Training(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = _model(method, size)

        def training_step(self, batch: Any, number: int) -> Any:
            return self.model(batch[0]).loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=RATE, weight_decay=DECAY)

        def on_train_batch_end(self, *arguments: Any) -> None:
            stamp()

    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_steps=count, gradient_clip_val=CLIP, default_root_dir=str(output)
    )
    trainer.fit(Training(), loader(ImageFolder(str(folder), crops(size)), size))

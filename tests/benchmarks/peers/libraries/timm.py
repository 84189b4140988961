"""timm: it has no masked modelling; classification is what the encoder costs without any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from timm.data import create_dataset, create_loader  # pyright: ignore[reportPrivateImportUsage]
from timm.models import create_model
from timm.optim import create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage]
from timm.task import ClassificationTask
from torch import nn

from tests.benchmarks.peers.libraries.step import CLIP, DECAY, RATE, Steps, endless, images, steps
from tests.benchmarks.peers.sizes import Size


def _task(size: Size) -> tuple[ClassificationTask, torch.optim.Optimizer]:
    model = create_model(
        "vit_tiny_patch16_224",
        img_size=size.image_size,
        patch_size=size.patch_size,
        embed_dim=size.width,
        depth=size.depth,
        num_heads=size.heads,
    )
    task = ClassificationTask(model, criterion=nn.CrossEntropyLoss(), verbose=False)
    return task, create_optimizer_v2(model, opt="adamw", lr=RATE, weight_decay=DECAY)


def build(method: str, size: Size) -> Steps:
    task, optimizer = _task(size)
    pixels, labels = images(size), torch.randint(0, 1000, (size.batch,))
    return steps(task, lambda: task(pixels, labels)["loss"], optimizer)


def train(method: str, size: Size, folder: Path, output: Path, count: int, stamp: Callable[[], None]) -> None:
    task, optimizer = _task(size)
    shape = 3, size.image_size, size.image_size
    batches = create_loader(
        create_dataset("", root=str(folder), is_training=True),
        input_size=shape,
        batch_size=size.batch,
        is_training=True,
        num_workers=2,
        use_prefetcher=False,
        device=torch.device("cpu"),
    )
    task.train()
    for number, (pixels, labels) in enumerate(endless(batches), start=1):
        task(pixels, labels)["loss"].backward()
        nn.utils.clip_grad_norm_(task.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        stamp()
        if number == count:
            break
    torch.save(task.state_dict(), output / "model.pt")

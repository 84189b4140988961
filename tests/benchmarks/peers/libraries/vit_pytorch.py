"""vit-pytorch: its wrappers for masked patch prediction, SimMIM and MAE around its own ViT."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
from torch import nn

from tests.benchmarks.peers.libraries.step import CLIP, RATE, Steps, adamw, crops, endless, images, loader, steps
from tests.benchmarks.peers.sizes import Size


def _model(method: str, size: Size) -> nn.Module:
    vit = import_module("vit_pytorch").ViT(
        image_size=size.image_size,
        patch_size=size.patch_size,
        num_classes=1000,
        dim=size.width,
        depth=size.depth,
        heads=size.heads,
        mlp_dim=4 * size.width,
    )
    if method == "mpp":
        return import_module("vit_pytorch.mpp").MPP(transformer=vit, patch_size=size.patch_size, dim=size.width)
    if method == "simmim":
        return import_module("vit_pytorch.simmim").SimMIM(encoder=vit, masking_ratio=0.5)
    return import_module("vit_pytorch").MAE(encoder=vit, masking_ratio=0.75, decoder_dim=512, decoder_depth=6)


def build(method: str, size: Size) -> Steps:
    model, pixels = _model(method, size), images(size)
    return steps(model, lambda: model(pixels), adamw(model))


def train(method: str, size: Size, folder: Path, output: Path, count: int, stamp: Callable[[], None]) -> None:
    from torchvision.datasets import ImageFolder

    model = _model(method, size)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    batches = loader(ImageFolder(str(folder), crops(size)), size)
    for number, (pixels, _) in enumerate(endless(batches), start=1):
        model(pixels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        stamp()
        if number == count:
            break
    torch.save(model.state_dict(), output / "model.pt")

"""A training step as most examples write it, and what whole runs share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain, repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tests.benchmarks.peers.sizes import Size

RATE, DECAY, CLIP = 5e-4, 0.05, 1.0
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Steps(NamedTuple):
    """Training steps by mode: `float32`, `bfloat16`, and others; the mode of the library's own documentation."""

    take: dict[str, Callable[[], None]]
    default: str = "float32"


def steps(module: nn.Module, loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> Steps:
    """Forward, backward, clip, step, with and without autocast."""
    module.train()

    def step(mode: str) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=mode == "bfloat16"):
            value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()

    return Steps({"float32": lambda: step("float32"), "bfloat16": lambda: step("bfloat16")})


def adamw(module: nn.Module, **arguments: Any) -> torch.optim.Optimizer:
    """PyTorch's AdamW as it comes."""
    return torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=DECAY, **arguments)


def images(size: Size) -> Tensor:
    """A batch of normalised images, float32 `(b, 3, h, w)`."""
    return torch.randn(size.batch, 3, size.image_size, size.image_size)


def crops(size: Size, **arguments: Any) -> Any:
    """torchvision's random crop, flip, tensor, normalise."""
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size.image_size, **arguments),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def loader(dataset: Any, size: Size) -> Any:
    """PyTorch's loader over a data set."""
    return torch.utils.data.DataLoader(dataset, size.batch, shuffle=True, drop_last=True, num_workers=2)


def endless(batches: Iterable[Any]) -> Iterable[Any]:
    """The batches of one epoch after the other."""
    return chain.from_iterable(repeat(batches))

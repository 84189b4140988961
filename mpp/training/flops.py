"""Floating-point operations of an image, the peak rate of a device, and its name."""

from __future__ import annotations

import contextlib
import platform
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def flops_per_image(objective: nn.Module, pixels: Tensor, labels: Tensor | None) -> float:
    """Floating-point operations of one image's forward and backward pass, those of matrix products.

    Counted by PyTorch on a pass of `pixels`, uint8 `(b, 3, h, w)`. It freezes parameters that get no gradient from
    this objective (a norm after pooling, say): distributed training would wait for them.
    """
    with FlopCounterMode(display=False) as counter:
        objective.forward(pixels, torch.arange(len(pixels), device=pixels.device), labels).loss.backward()
    for parameter in objective.parameters():
        if parameter.grad is None:
            parameter.requires_grad_(False)
    objective.zero_grad()
    return counter.get_total_flops() / len(pixels)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The measured rate of a large square matrix product on this device, operations a second."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        (left @ right)[0, 0].item()
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


def hardware(device: torch.device, processes: int) -> str:
    """The processor or GPUs, without names of machines."""
    if device.type == "cuda":
        return f"{processes} × {torch.cuda.get_device_name(device)}"
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):  # only Linux has the file
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    threads = processes * torch.get_num_threads()
    return f"{threads} thread{'s' if threads > 1 else ''} of {model}"

"""What PyTorch alone reaches here: products, copies, attention."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.benchmarks.gpu.bench import Bench, Case
from tests.benchmarks.gpu.clock import in_turn

HEADS = {"Ti": 3, "S": 6, "B": 12}
TOKENS, HEAD_WIDTH = 197, 64
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def machine(bench: Bench) -> list[Case]:
    """Products, copies, the rest of the machine."""
    return [Case("rates", 12, partial(_rates, bench)), Case("surroundings", 1, partial(_surroundings, bench))]


def attention(bench: Bench) -> list[Case]:
    """The kernels by themselves, forward and backward."""
    return [
        Case(f"{model}, batch 256, {'deterministic' if exact else 'default'} algorithms", 7,
             partial(_attention, bench, heads, exact=exact))
        for model, heads in HEADS.items() for exact in (False, True)
    ]  # fmt: skip


def _rates(bench: Bench) -> dict[str, Any]:
    from mpp.training.flops import peak_flops

    device, size = bench.device, 8192 if bench.cuda else 256
    sides: dict[str, Callable[[], object]] = {}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        sides[name] = partial(torch.matmul, left, right)
    elements = 2**30 if bench.cuda else 2**20
    source, target = torch.ones(elements, device=device, dtype=torch.uint8), torch.empty(elements, dtype=torch.uint8)
    target = target.to(device)
    sides["copy"] = lambda: target.copy_(source)
    host = torch.ones(elements // 8, dtype=torch.uint8, pin_memory=bench.cuda)
    sides["to_device"] = lambda: target[: len(host)].copy_(host, non_blocking=True)
    little = torch.ones(1, device=device)
    sides["launch"] = lambda: little.add_(0)
    taken = in_turn(sides, device, seconds=4)
    return {
        "bfloat16_tflops": 2 * size**3 / taken["bfloat16"]["ms"] / 1e9,
        "float32_tflops": 2 * size**3 / taken["float32"]["ms"] / 1e9,
        "peak_of_the_package_tflops": peak_flops(device, torch.bfloat16) / 1e12,
        "copy_gigabytes_a_second": 2 * elements / taken["copy"]["ms"] / 1e6,
        "to_device_gigabytes_a_second": len(host) / taken["to_device"]["ms"] / 1e6,
        "launch_microseconds": 1000 * taken["launch"]["ms"],
    }


def _surroundings(bench: Bench) -> dict[str, Any]:
    shared = shutil.disk_usage("/dev/shm") if Path("/dev/shm").is_dir() else None
    found: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "shared_memory_free_gigabytes": shared.free / 1e9 if shared else None,
        "disk_free_gigabytes": shutil.disk_usage(bench.work).free / 1e9,
        "cuda": torch.version.cuda,
        "nccl_available": torch.distributed.is_nccl_available(),
    }
    if bench.cuda:
        about = torch.cuda.get_device_properties(0)
        found |= {
            "memory_gigabytes": about.total_memory / 1e9,
            "capability": f"{about.major}.{about.minor}",
            "multiprocessors": about.multi_processor_count,
            "cudnn": torch.backends.cudnn.version(),
            "devices": torch.cuda.device_count(),
        }
    return found


def _attention(bench: Bench, heads: int, *, exact: bool) -> dict[str, Any]:
    batch, tokens = (256, TOKENS) if bench.cuda else (1, 17)
    heads = heads if bench.cuda else 2
    shape = batch, heads, tokens, HEAD_WIDTH
    kind = torch.bfloat16 if bench.cuda else torch.float32
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(shape, device=bench.device, dtype=kind) for _ in range(4))
    for tensor in (q, k, v):
        tensor.requires_grad_()

    def both(forward: Callable[[], Tensor]) -> None:
        q.grad = k.grad = v.grad = None
        forward().backward(grad)

    def plain() -> Tensor:
        return ((q * HEAD_WIDTH**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v

    def by(backend: SDPBackend) -> Tensor:
        with sdpa_kernel([backend]):
            return F.scaled_dot_product_attention(q, k, v)

    ways: dict[str, Callable[[], Tensor]] = {"default": lambda: F.scaled_dot_product_attention(q, k, v)}
    ways |= {name: partial(by, backend) for name, backend in BACKENDS.items()} | {"unfused": plain}
    with algorithms(exact):
        outputs, refused = {}, {}
        for name, way in ways.items():
            try:
                both(way)
                outputs[name] = way().detach()
            except RuntimeError as error:
                refused[name] = str(error).splitlines()[0][:200]
        taken = in_turn({name: partial(both, ways[name]) for name in outputs}, bench.device, seconds=3)
        # By its own choice function, and by the bits of its output, which two kernels rarely share.
        chosen = None
        with contextlib.suppress(AttributeError, RuntimeError):
            choice = torch._fused_sdp_choice(q, k, v)  # pyright: ignore[reportPrivateImportUsage]
            chosen = SDPBackend(choice).name.removesuffix("_ATTENTION").lower()
    reference = plain().detach().float()
    flops = 4 * batch * heads * tokens**2 * HEAD_WIDTH * 3.5  # the backward pass has five products, the forward two
    return {
        "default": chosen,
        "same_bits_as_default": [n for n in BACKENDS if n in outputs and torch.equal(outputs[n], outputs["default"])],
        "ms": {name: side["ms"] for name, side in taken.items()},
        "tflops": {name: flops / side["ms"] / 1e9 for name, side in taken.items()},
        "largest_difference": {n: float((o.float() - reference).abs().max()) for n, o in outputs.items()},
        "refused": refused,
    }


@contextlib.contextmanager
def algorithms(exact: bool, *, fill: bool = True) -> Iterator[None]:
    """Deterministic algorithms or not; `fill` overwrites new memory, which is their default."""
    torch.use_deterministic_algorithms(exact)
    before = torch.utils.deterministic.fill_uninitialized_memory  # pyright: ignore[reportAttributeAccessIssue]
    torch.utils.deterministic.fill_uninitialized_memory = fill  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = before  # pyright: ignore[reportAttributeAccessIssue]

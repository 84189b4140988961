"""Training steps on random pixels that lie on the device: overhead, memory, deterministic mode, attention kernels."""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel

import mpp
from mpp.objective.masked_patch import MaskedPatchPrediction
from mpp.training.flops import flops_per_image, peak_flops
from mpp.training.optimizer import make_optimizer
from mpp.training.settings import OptimizerSettings
from tests.benchmarks.gpu.bench import Bench, Case
from tests.benchmarks.gpu.clock import in_turn
from tests.benchmarks.gpu.kernels import BACKENDS, algorithms

Step = Callable[[], None]
MAIN = (("B", 256, True), ("B", 256, False), ("Ti", 256, False), ("Ti", 256, True), ("S", 256, False), ("S", 256, True))
OTHERS = (("B", 64), ("B", 512), ("Ti", 1024), ("Ti", 64), ("S", 1024))
TARGETS = {
    "mean colour, checkpointed": mpp.MeanColor,
    "downsized": mpp.DownsizedPatch,
    "full patch": mpp.FullPatch,
    "downsized, checkpointed": mpp.DownsizedPatch,
}
MEMORY = (("Ti", 256), ("S", 256), ("B", 256), ("B", 512), ("L", 128), ("H", 64))
SECONDS = 6.0
"""How long the sides of a case are measured together."""


def overhead(bench: Bench) -> list[Case]:
    """The models at one batch, eager and compiled."""
    return [
        Case(f"{model}, batch {size}, {'compiled' if compiled else 'eager'}", 90 if compiled else 15,
             partial(_overhead, bench, model, size, compiled=compiled))
        for model, size, compiled in MAIN
    ]  # fmt: skip


def batches(bench: Bench) -> list[Case]:
    """Other batches, eager."""
    return [Case(f"{model}, batch {size}, eager", 18, partial(_overhead, bench, model, size)) for model, size in OTHERS]


def compiled_targets(bench: Bench) -> list[Case]:
    """The other targets, and gradient checkpointing."""
    return [
        Case(f"Ti, batch 256, compiled, {name}", 80,
             partial(_overhead, bench, "Ti", 256, compiled=True, target=target(), checkpointed="checkpointed" in name))
        for name, target in TARGETS.items()
    ]  # fmt: skip


def determinism(bench: Bench) -> list[Case]:
    """Eager."""
    return [
        Case(f"{model}, batch 256, eager", 18, partial(_determinism, bench, model, compiled=False))
        for model in ("B", "S", "Ti")
    ]


def compiled_determinism(bench: Bench) -> list[Case]:
    """Compiled."""
    return [Case("B, batch 256, compiled", 110, partial(_determinism, bench, "B", compiled=True))]


def attention_steps(bench: Bench) -> list[Case]:
    """Default algorithms and deterministic ones."""
    return [
        Case(f"B, batch 256, {'deterministic' if exact else 'default'} algorithms", 25,
             partial(_attention_steps, bench, exact=exact))
        for exact in (False, True)
    ]  # fmt: skip


def memory(bench: Bench) -> list[Case]:
    """Peaks by model and batch, with and without gradient checkpointing."""
    return [
        Case(f"{model}, batch {size}{', checkpointed' if checkpointed else ''}", 5,
             partial(_memory, bench, model, size, checkpointed=checkpointed))
        for model, size in MEMORY for checkpointed in (False, True)
    ]  # fmt: skip


def _overhead(
    bench: Bench, model: str, size: int, *, compiled: bool = False, target: Any = None, checkpointed: bool = False
) -> dict[str, Any]:
    size = bench.batch(size)
    objective = _objective(bench, model, target)
    flops = flops_per_image(objective, _pixels(bench, 1), None)
    if checkpointed:
        objective.encoder.use_gradient_checkpointing()
    bare = objective.bare(size).to(bench.device)
    sides = {
        "objective": _objective_step(bench, objective, size, compiled=compiled),
        "bare": _step(bench, bare, lambda: bare(), compiled=compiled),
    }
    for side in sides.values():
        side()  # compiles, and makes the optimizer's state
    peaks = {name: _peak_bytes(bench, side) for name, side in sides.items()}
    taken = in_turn(sides, bench.device, seconds=SECONDS)
    rate = 1000 * size / taken["objective"]["ms"]
    peak = peak_flops(bench.device, torch.bfloat16 if bench.cuda else torch.float32)
    return {
        "batch": size,
        "overhead": taken["objective"]["ms"] / taken["bare"]["ms"] - 1,
        "images_a_second": rate,
        "tflops": rate * flops / 1e12,
        "share_of_peak": rate * flops / peak,
        "objective": taken["objective"],
        "bare": taken["bare"],
        "peak_gigabytes": {name: value / 1e9 for name, value in peaks.items()},  # with the weights of both networks
    }


def _determinism(bench: Bench, model: str, *, compiled: bool) -> dict[str, Any]:
    size = bench.batch(256)
    modes: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "default": partial(algorithms, False),
        "deterministic": partial(algorithms, True),
    }
    if not compiled:  # which allocates little by itself
        modes["deterministic, memory not filled"] = partial(algorithms, True, fill=False)
    # A network for each: what was compiled for one mode is not what another would get.
    steps = {name: _objective_step(bench, _objective(bench, model), size, compiled=compiled) for name in modes}
    taken = in_turn(
        {name: partial(_within, mode, steps[name]) for name, mode in modes.items()}, bench.device, seconds=SECONDS
    )
    fastest = taken["default"]["ms"]
    return {
        "ms": {name: side["ms"] for name, side in taken.items()},
        "cost": {name: side["ms"] / fastest - 1 for name, side in taken.items() if name != "default"},
        "sides": taken,
    }


def _attention_steps(bench: Bench, *, exact: bool) -> dict[str, Any]:
    size = bench.batch(256)
    fused, unfused = _objective(bench, "B"), _objective(bench, "B")
    fused.encoder.use_fused_attention(True)
    unfused.encoder.use_fused_attention(False)
    step = _objective_step(bench, fused, size)
    ways: dict[str, Step] = {"default": step, "unfused": _objective_step(bench, unfused, size)}
    ways |= {name: partial(_within, partial(sdpa_kernel, [kind]), step) for name, kind in BACKENDS.items()}
    with algorithms(exact):
        refused = {}
        for name, way in list(ways.items()):
            try:
                way()
            except RuntimeError as error:
                refused[name] = str(error).splitlines()[0][:200]
                del ways[name]
                fused.zero_grad()
        taken = in_turn(ways, bench.device, seconds=SECONDS)
    return {"ms": {name: side["ms"] for name, side in taken.items()}, "refused": refused}


def _memory(bench: Bench, model: str, size: int, *, checkpointed: bool) -> dict[str, Any]:
    size = bench.batch(size)
    objective = _objective(bench, model)
    if checkpointed:
        objective.encoder.use_gradient_checkpointing()
    step = _objective_step(bench, objective, size)
    try:
        step()  # makes the optimizer's state
        peak = _peak_bytes(bench, step)
    except torch.OutOfMemoryError:
        return {"batch": size, "out_of_memory": True}
    kept = sum(p.numel() for p in objective.parameters()) * 4 * 3  # weights and two moments
    return {
        "batch": size,
        "peak_gigabytes": peak / 1e9,
        "weights_and_moments_gigabytes": kept / 1e9,
        "megabytes_an_image": (peak - kept) / 1e6 / size,
        "of": "the GPU" if bench.cuda else "the process, all it ever took",
    }


def _objective(bench: Bench, model: str, target: Any = None) -> MaskedPatchPrediction:
    torch.manual_seed(0)
    objective = mpp.MaskedPatchPrediction(bench.encoder(model), target)
    return objective.to(bench.device)


def _pixels(bench: Bench, count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, *2 * (bench.image_size,)), dtype=torch.uint8, device=bench.device)


def _objective_step(bench: Bench, objective: MaskedPatchPrediction, size: int, *, compiled: bool = False) -> Step:
    pixels, samples = _pixels(bench, size), torch.arange(size, device=bench.device)
    return _step(bench, objective, lambda: objective(pixels, samples).loss, compiled=compiled)


def _step(bench: Bench, module: nn.Module, loss: Callable[[], Tensor], *, compiled: bool) -> Step:
    """Forward, backward, clip, optimizer: as `mpp.benchmark` measures it, the same for both sides."""
    module.train()
    if compiled:
        module.compile(fullgraph=True)
    optimizer = make_optimizer(module, OptimizerSettings())

    def step() -> None:
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.cuda):
            value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _within(mode: Callable[[], AbstractContextManager[Any]], step: Step) -> None:
    with mode():
        step()


def _peak_bytes(bench: Bench, step: Step) -> int:
    """The peak of a step: of the device's memory, or on a CPU of the process so far."""
    if not bench.cuda:
        step()
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()

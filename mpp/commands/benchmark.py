"""What `mpp.benchmark` measures, and against what."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mpp.commands.preflight import check_training
from mpp.commands.pretrain import make_objective, prepare_data
from mpp.commands.train_run import count_flops, uses_fused_attention
from mpp.data.loader import TrainingCrops, batches
from mpp.data.sampler import plan_batches
from mpp.recipe import PretrainRecipe
from mpp.training.distributed import precision, start_processes
from mpp.training.flops import peak_flops
from mpp.training.optimizer import make_optimizer

SECONDS = 30.0
"""How long each pair is measured."""
ROUNDS = 7
"""At least so many rounds, whatever they take."""
LOADED = 2000
"""Images over which the loader is measured."""


def benchmark(recipe: PretrainRecipe) -> int:
    """Print what a recipe reaches on this machine."""
    accelerator = start_processes(recipe.training, folder=Path(recipe.output_dir))
    check_training(recipe, accelerator)
    splits = prepare_data(recipe, accelerator)
    objective = make_objective(recipe, splits.train).to(accelerator.device)
    encoder = objective.encoder
    plan = plan_batches(recipe.training.batch_size, recipe.training.micro_batch_size)
    crops = TrainingCrops(splits.train, recipe.data, recipe.seed)
    dtype = precision(recipe.training)
    print(f"{encoder.summary}\nmicro-batch {plan.micro_batch_size}, "
          f"{accelerator.device.type}, {dtype}, {torch.get_num_threads()} threads")  # fmt: skip

    loader_rate = _loader_rate(crops, plan.micro_batch_size, recipe.data.workers)
    print(f"loader, {recipe.data.workers} workers:  {loader_rate:8.0f} images/s")

    encoder.use_fused_attention(uses_fused_attention(recipe.encoder.attention, accelerator))
    flops = count_flops(objective, accelerator)
    steps = [_objective_step(recipe, objective, crops, plan.micro_batch_size, accelerator)]
    if (bare := objective.bare(plan.micro_batch_size)) is not None:
        steps.append(_step(recipe, bare.to(accelerator.device), lambda module: module(), accelerator))
    seconds = _in_turn(steps, accelerator.device)
    rate = plan.micro_batch_size / seconds[0]
    peak = peak_flops(accelerator.device, getattr(torch, dtype))
    print(f"training step:      {rate:8.1f} images/s, {1000 * seconds[0]:.1f} ms")
    print(f"                    {rate * flops / 1e12:8.3f} TFLOP/s, {rate * flops / peak:.0%} of the "
          f"{peak / 1e12:.2f} that a large matrix product reaches here")  # fmt: skip
    if len(seconds) > 1:
        print(f"bare timm step:     {plan.micro_batch_size / seconds[1]:8.1f} images/s, {1000 * seconds[1]:.1f} ms")
        print(f"objective overhead: {seconds[0] / seconds[1] - 1:+8.1%}")
    return 0


def _loader_rate(crops: TrainingCrops, batch_size: int, workers: int) -> float:
    """Images a second out of the loader when nothing else runs; the first batch, which starts it, apart."""
    count = max(-(-LOADED // batch_size), 4)
    loader = batches(crops, plan_batches(batch_size, None).micro_batches(0, count + 1), workers=workers)
    next(loader)
    begun = time.perf_counter()
    for _ in range(count):
        next(loader)
    return count * batch_size / (time.perf_counter() - begun)


def _objective_step(
    recipe: PretrainRecipe, objective: nn.Module, crops: TrainingCrops, batch_size: int, accelerator: Accelerator
) -> Callable[[], None]:
    numbers = next(plan_batches(batch_size, None).micro_batches(0, 1))
    batch = crops[numbers]
    pixels, samples = batch.pixels.to(accelerator.device), batch.samples.to(accelerator.device)
    labels = None if batch.labels is None else batch.labels.to(accelerator.device)
    step = copy.deepcopy(objective)
    return _step(recipe, step, lambda module: module(pixels, samples, labels).loss, accelerator)


def _step(
    recipe: PretrainRecipe, module: nn.Module, loss: Callable[[nn.Module], Tensor], accelerator: Accelerator
) -> Callable[[], None]:
    """A training step: forward, backward, clip, optimiser; the same for both sides but for module and loss."""
    module.train()
    if recipe.training.compile:
        module.compile(fullgraph=True)
    optimizer = make_optimizer(module, recipe.optimizer)

    def step() -> None:
        with accelerator.autocast():
            value = loss(module)
        value.backward()
        if recipe.training.clip_grad is not None:
            nn.utils.clip_grad_norm_(module.parameters(), recipe.training.clip_grad)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _in_turn(steps: list[Callable[[], None]], device: torch.device) -> list[float]:
    """Median seconds of each step, all measured in turn so that a noisy machine hits all alike."""
    for step in steps:
        step()
        step()
    taken: list[list[float]] = [[] for _ in steps]
    begun = time.perf_counter()
    while len(taken[0]) < ROUNDS or time.perf_counter() - begun < SECONDS:
        for step, seconds in zip(steps, taken, strict=True):
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in taken]

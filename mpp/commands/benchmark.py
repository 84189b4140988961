"""What `mpp.benchmark` measures, and against what."""

from __future__ import annotations

import copy
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mpp.commands.preflight import check_training
from mpp.commands.pretrain import make_objective, prepare_data
from mpp.commands.train_run import count_flops, uses_fused_attention
from mpp.data.loader import TrainingCrops, batches
from mpp.data.sampler import plan_batches
from mpp.files import write_text
from mpp.objective.base import Objective
from mpp.recipe import PretrainRecipe, write_recipe
from mpp.settings import Duration
from mpp.training.distributed import precision, start_processes, to_device
from mpp.training.flops import hardware, peak_flops
from mpp.training.metrics_log import read_metrics
from mpp.training.optimizer import make_optimizer
from mpp.training.settings import JournalSettings
from mpp.training.streams import Streams, number_of_streams

SECONDS = float(os.environ.get("MPP_BENCHMARK_SECONDS", "30"))
"""How long the steps are measured, in turn."""
ROUNDS = 7
"""At least so many rounds, whatever they take."""
LOADED = 2000
"""Images over which the loader is measured."""
RUN_SECONDS = SECONDS * 2 / 3
"""How long the run is that is timed as a whole."""
MUCH_WAITING = 0.02
"""Share of the time; the cause is named above it."""


class Figure(NamedTuple):
    """A measured number."""

    title: str
    value: float
    form: str
    """How it is printed, with its unit."""
    remark: str = ""


def benchmark(recipe: PretrainRecipe) -> int:
    """Print what a recipe reaches on this machine, beside what it reached when this was last measured."""
    accelerator = start_processes(recipe.training, folder=Path(recipe.output_dir))
    check_training(recipe, accelerator)
    splits = prepare_data(recipe, accelerator)
    objective = make_objective(recipe, splits.train).to(accelerator.device)
    plan = plan_batches(recipe.training.batch_size, recipe.training.micro_batch_size)
    crops = TrainingCrops(splits.train, recipe.data, recipe.seed, objective.draws())
    print(f"{objective.encoder.summary}\nmicro-batch {plan.micro_batch_size}, {accelerator.device.type}, "
          f"{precision(recipe.training)}, {torch.get_num_threads()} threads\n", flush=True)  # fmt: skip
    earlier = _Earlier(recipe, hardware(accelerator.device, 1))
    loader_rate = _loader_rate(crops, plan.micro_batch_size, recipe.data.workers)
    title = f"loader alone, {recipe.data.workers} workers"
    earlier.show(Figure(title, loader_rate, "{:,.0f} images/s"))
    objective.encoder.use_fused_attention(uses_fused_attention(recipe.encoder.attention, accelerator))
    if recipe.training.residual == "bfloat16":
        objective.encoder.use_bfloat16_residual()
    step_rate = 0.0
    for figure in _step_figures(recipe, objective, crops, plan.micro_batch_size, accelerator):
        step_rate = step_rate or figure.value
        earlier.show(figure)
    count = max(round(RUN_SECONDS * step_rate / recipe.training.batch_size), 4)
    for figure in _run_figures(recipe, count, loader_rate, step_rate):
        earlier.show(figure)
    earlier.save()
    return 0


class _Earlier:
    """The figures of the last benchmark of this recipe, beside its output folder; the new ones replace them."""

    def __init__(self, recipe: PretrainRecipe, machine: str) -> None:
        self.path = Path(f"{recipe.output_dir.rstrip('/')}.benchmark.json")
        self._new: dict[str, Any] = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "hardware": machine,
            "recipe": recipe.model_dump(mode="json"),
            "figures": {},
        }
        self._old: dict[str, Any] = {}
        if self.path.is_file():
            old = json.loads(self.path.read_text(encoding="utf-8"))
            if changed := [name for name in ("hardware", "recipe") if old[name] != self._new[name]]:
                print(f"{self.path} is of {' and '.join(changed).replace('recipe', 'settings')} that differ: it is "
                      "replaced, without a comparison\n")  # fmt: skip
            else:
                self._old = old["figures"]
                print(f"{'':26}{'now':>18}   {old['date'][:10]:>18}   now / then")

    def show(self, figure: Figure) -> None:
        """Print a figure, with its earlier value if there is one."""
        self._new["figures"][figure.title] = figure.value
        line = f"{figure.title:26}{figure.form.format(figure.value):>18}"
        if (before := self._old.get(figure.title)) is not None:
            ratio = "" if "%" in figure.form else f"{figure.value / before:10.2f} ×" if before else ""
            line += f"   {figure.form.format(before):>18}   {ratio}"
        print(line.rstrip() + (f"\n  {figure.remark}" if figure.remark else ""), flush=True)

    def save(self) -> None:
        """Keep the figures for the next time."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps(self._new, indent=1) + "\n")
        print(f"\nsaved in {self.path}, to be compared with next time")


def _step_figures(
    recipe: PretrainRecipe, objective: Objective, crops: TrainingCrops, batch_size: int, accelerator: Accelerator
) -> list[Figure]:
    """The training step, the first figure, and the bare timm step, in turn; page faults of all."""
    dtype = getattr(torch, precision(recipe.training))
    flops, peak = count_flops(objective, accelerator), peak_flops(accelerator.device, dtype)
    streams = number_of_streams(recipe.training, objective, batch_size, accelerator)
    one = _objective_step(recipe, objective, crops, batch_size, accelerator, streams=1)
    steps = [one]
    if streams > 1:
        steps.insert(0, _objective_step(recipe, objective, crops, batch_size, accelerator, streams=streams))
    if (bare := objective.bare(batch_size)) is not None:
        steps.append(_step(recipe, bare.to(accelerator.device), lambda module: module(), accelerator))
    seconds, faults, in_kernel = _in_turn(steps, accelerator.device)
    rate = batch_size / seconds[0]
    share = rate * flops / peak
    remark = f"{share:.0%} of the {peak / 1e12:.2f} TFLOP/s that a large matrix product reaches here"
    figures = [
        Figure("training step", rate, "{:.1f} images/s"),
        Figure("  time", 1000 * seconds[0], "{:.1f} ms"),
        Figure("  arithmetic", rate * flops / 1e12, "{:.3f} TFLOP/s", remark),
    ]
    undivided = seconds[len(seconds) - 1 if bare is None else -2]
    if streams > 1:
        remark = f"the training step takes it in {streams} parts, side by side (training.streams)"
        figures.append(Figure("  undivided micro-batch", batch_size / undivided, "{:.1f} images/s", remark))
    if bare is not None:
        figures.append(Figure("bare timm step", batch_size / seconds[-1], "{:.1f} images/s"))
        figures.append(Figure("objective overhead", 100 * (undivided / seconds[-1] - 1), "{:+.1f} %"))
    figures.append(Figure("page faults", faults, "{:,.0f} a step"))
    figures.append(Figure("  time in the kernel", 100 * in_kernel, "{:.1f} % of CPU"))
    return figures


def _run_figures(recipe: PretrainRecipe, count: int, loader_rate: float, step_rate: float) -> list[Figure]:
    """A run of so many steps as its own process, from its start: what a user waits for."""
    count += count % 2  # or the last line of its log would be of a single step
    with tempfile.TemporaryDirectory() as folder:
        short = recipe.model_copy(update={
            "output_dir": f"{folder}/run",
            "training": recipe.training.model_copy(update={"duration": Duration(steps=count)}),
            "journal": JournalSettings(every=Duration(steps=max(count // 2, 1))),
            # A decay, or a warm-up, of the recipe's own may be longer than this run.
            "optimizer": recipe.optimizer.model_copy(
                update={"schedule": "constant", "decay": None, "warmup": Duration(steps=count)}
            ),
        })  # fmt: skip
        write_recipe(short, Path(folder) / "recipe.yaml")
        log = Path(folder) / "log.txt"
        with log.open("w", encoding="utf-8") as out:
            command = [sys.executable, "-m", "mpp.pretrain", f"{folder}/recipe.yaml"]
            process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"the run ended with exit code {process.returncode}:\n{log.read_text()[-2000:]}")
        metrics = read_metrics(Path(folder) / "run" / "metrics.jsonl")
    logged = [line for line in metrics if "images_per_second" in line]
    waited = sum(line["seconds_waiting"] for line in logged) / logged[-1]["seconds"]
    resident = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    figures = [
        Figure("time to first step", logged[0]["seconds_to_first_step"], "{:.1f} s"),
        Figure(
            "training run", logged[-1]["images_per_second"], "{:.1f} images/s", f"of {count} steps, its second half"
        ),
        Figure("  waiting for images", 100 * waited, "{:.1f} %", _cause(recipe, waited, loader_rate, step_rate)),
        Figure("  peak memory", resident, "{:.2f} GB"),
    ]
    if "gpu_memory_gb" in logged[-1]:
        figures.append(Figure("  peak memory of the GPU", logged[-1]["gpu_memory_gb"], "{:.2f} GB"))
    return figures


def _cause(recipe: PretrainRecipe, waited: float, loader_rate: float, step_rate: float) -> str:
    """Why a run waits for its images, and what to set; empty if it hardly does."""
    if waited <= MUCH_WAITING:
        return ""
    if recipe.data.workers == 0:
        return "images are cropped in the training process itself: try data.workers=1"
    rates = f"the loader gives {loader_rate:,.0f} images/s, and the step takes {step_rate:,.0f}"
    if loader_rate < 1.1 * step_rate:
        kept = "" if recipe.data.cache else ", data.cache=true for a data set that fits in memory"
        return f"{rates}: raise data.workers{kept}, or store smaller images"
    return f"{rates}: loader and training share the cores; try fewer data.workers or training.threads"


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
    recipe: PretrainRecipe,
    objective: Objective,
    crops: TrainingCrops,
    batch_size: int,
    accelerator: Accelerator,
    *,
    streams: int,
) -> Callable[[], None]:
    numbers = next(plan_batches(batch_size, None).micro_batches(0, 1))
    batch = to_device(crops[numbers], accelerator.device)
    given = {"pixels": batch.pixels, "samples": batch.samples, "labels": batch.labels}
    if batch.draw is not None:
        given["draw"] = batch.draw
    objective = copy.deepcopy(objective)
    if streams == 1:
        return _step(recipe, objective, lambda module: module(**given).loss, accelerator)
    side_by_side = Streams(objective.train(), streams)
    return _step(recipe, objective, lambda _: side_by_side.backward(given, 1.0, accelerator.autocast), accelerator)


def _step(
    recipe: PretrainRecipe, module: nn.Module, loss: Callable[[nn.Module], Any], accelerator: Accelerator
) -> Callable[[], None]:
    """A training step: forward, backward, clip, optimiser; the same for all but module and loss.

    `loss` gives a loss, or has done the backward pass as well.
    """
    module.train()
    if recipe.training.compile:
        module.compile(fullgraph=True)
    optimizer = make_optimizer(module, recipe.optimizer)

    def step() -> None:
        with accelerator.autocast():
            value = loss(module)
        if isinstance(value, Tensor):
            value.backward()
        if recipe.training.clip_grad is not None:
            nn.utils.clip_grad_norm_(module.parameters(), recipe.training.clip_grad)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _in_turn(steps: list[Callable[[], None]], device: torch.device) -> tuple[list[float], float, float]:
    """Median seconds of each step, all measured in turn so that a noisy machine hits all alike; page faults a step, and
    the share of the CPU time that the kernel takes.
    """
    for step in steps:
        step()
        step()
    taken: list[list[float]] = [[] for _ in steps]
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    while len(taken[0]) < ROUNDS or time.perf_counter() - begun < SECONDS:
        for step, seconds in zip(steps, taken, strict=True):
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    after = resource.getrusage(resource.RUSAGE_SELF)
    faults = (after.ru_minflt - before.ru_minflt) / sum(map(len, taken))
    user, kernel = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return [statistics.median(seconds) for seconds in taken], faults, kernel / max(user + kernel, 1e-9)

"""The one training loop: batches in, gradients, steps, checkpoints. It knows no objective by name."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from mpp import randomness
from mpp.data.images import TooManyDamagedError
from mpp.data.loader import Batch, TrainingCrops, batches
from mpp.data.order import Share
from mpp.files import flush
from mpp.objective import scores as sums
from mpp.objective.scores import Scores
from mpp.training.checkpoint import Checkpoint, CheckpointError, Checkpoints
from mpp.training.journal import Journal
from mpp.training.launch import distribute, on_main, saved_buffers
from mpp.training.optimizer import LearningRate
from mpp.training.signals import StopRequest

FEWEST_JUDGED = 1000
"""Damaged images are held against at least so many (or all there are) before a run is stopped for them."""


class Callback(NamedTuple):
    """Something to do every so often, and after the last step."""

    every: int
    """Steps; 0 means only after the last."""
    call: Callable[[int, nn.Module], Iterable[tuple[str, Any]]]
    """Called with the step and the objective, in every process; yields (name, value) pairs for the journal."""


class EarlyStopping(NamedTuple):
    """When to be content with what there is, by what the callbacks say; and how to keep the best of it."""

    metric: str
    """The name of a value that the callbacks yield; the larger, the better."""
    patience: int
    """The run ends after so many looks in a row without a new best; 0 means never."""
    keep: Callable[[int], None]
    """Called with the step, by the main process, at every new best."""
    settle: Callable[[int], None]
    """Called with the step of the best, by the main process, after every save: older ones are not needed again."""


class NonFiniteError(RuntimeError):
    """Too many steps in a row without a finite loss."""


@dataclass
class Progress:
    """What a run remembers besides weights and optimiser. Samples seen are step × batch size."""

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0
    damaged: dict[int, str] = field(default_factory=dict)
    owes_a_look: bool = False
    """The callbacks of this step were put off, because the run was asked to stop."""
    best: float | None = None
    """The best value of the early-stopping metric so far, and its step."""
    best_loss: float = 0.0
    best_step: int = 0
    looks_since_best: int = 0
    ended: bool = False
    """Early stopping has ended the run."""

    def as_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {**vars(self), "damaged": list(self.damaged.items())}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Progress:
        """The inverse of `as_json`."""
        return cls(**{**saved, "damaged": dict(saved["damaged"])})


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that the loop works with; the objective is any module of the room `objective`."""

    objective: nn.Module
    crops: TrainingCrops
    share: Share
    steps: int
    seed: int
    optimizer: torch.optim.Optimizer
    learning_rate: LearningRate
    accelerator: Accelerator
    checkpoints: Checkpoints
    journal: Journal
    stop: StopRequest
    callbacks: list[Callback]
    log_every: int
    save_every: int
    before_save: Callable[[], None]
    """Called by the main process before each save: where there is a checkpoint, this was done."""
    state: dict[str, Any]
    """Goes into every checkpoint as it is."""
    augment: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    """uint8 pixels and labels of a training batch, on the device → others, of the same shape and type; labels may
    become probabilities `(b, classes)`."""
    early_stopping: EarlyStopping | None = None
    workers: int = 0
    compile: bool = False
    clip_grad: float | None = None
    max_skipped: int = 10
    max_bad_share: float = 0.01
    flops_per_image: float = 0.0
    peak_flops: float = 0.0


def train(run: Run, checkpoint: Checkpoint | None = None) -> Progress:
    """Train to the end, or until asked to stop; what is on disk is then the state after the last step.

    Args:
        run: what to train, on what, how long.
        checkpoint: where to go on from; None starts at step 0.

    Returns:
        How far it came.

    Raises:
        NonFiniteError: if too many steps in a row had no finite loss.
        TooManyDamagedError: if too many images cannot be decoded.
        CheckpointError: if the state cannot be saved.
    """
    if run.compile:
        run.objective.compile(fullgraph=True)
    model = distribute(run.accelerator, run.objective)
    if run.accelerator.num_processes > 1:
        _settle_buckets(run, model)
    progress = Progress()
    if checkpoint is not None:
        checkpoint.load_into(run.objective, run.optimizer)
        progress = Progress.from_json(checkpoint.state["progress"])
        on_main(run.accelerator, lambda: _export(run, progress))  # a kill may have come before
    numbers = run.share.micro_batches(progress.step, run.steps)
    pin = run.accelerator.device.type == "cuda"
    loader = batches(run.crops, numbers, workers=run.workers, pin=pin)
    if progress.owes_a_look:
        progress.owes_a_look = False
        if seen := _look(run, progress):
            run.journal.write(progress.step, progress.step * run.share.batch_size, seen)
    clock = _Clock(run)
    statistics = saved_buffers(run.objective)
    stopped = False
    while progress.step < run.steps and not stopped and not progress.ended:
        begun = time.perf_counter()
        done = progress.step + 1
        logs = _due(done, run.log_every, run.steps)
        lr = _set_learning_rate(run, progress.step)
        _seed_everything(run, progress.step)
        buffers = [buffer.clone() for buffer in statistics]
        loss, scores, damaged = _gradients(run, model, loader, score=logs)
        norm = _gradient_norm(run)
        loss, stopped, any_damaged = _agree(run, loss, damaged)
        if math.isfinite(loss) and math.isfinite(norm):
            run.optimizer.step()
            progress.skipped_in_a_row = 0
        else:
            for buffer, before in zip(statistics, buffers, strict=True):  # batch norm has seen what broke the step
                buffer.copy_(before)
            progress.skipped += 1
            progress.skipped_in_a_row += 1
        run.optimizer.zero_grad()
        progress.step = done
        progress.seconds += clock.step(time.perf_counter() - begun)
        run.journal.advance(loss)

        values: dict[str, Any] = {}
        if any_damaged:
            values |= _note_damaged(run, progress, damaged)
        if progress.skipped_in_a_row:
            run.journal.say(f"step {done}: loss {loss:g}, gradient norm {norm:g}: not finite, the step is skipped")
            values["skipped"] = progress.skipped
        if logs:
            values |= _summary(run, scores) | {"gradient_norm": norm, "lr": lr} | clock.speed(progress)
        if stopped and done < run.steps:  # whoever asked for the stop may not wait for a look at the held-out images
            progress.owes_a_look = True
        else:
            values |= _look(run, progress)
        if values:
            run.journal.write(done, done * run.share.batch_size, values)
        # In the middle of steps that are not finite there is nothing to save; at the end there are the steps before.
        good = not progress.skipped_in_a_row or done == run.steps
        saves = stopped or progress.ended or (_due(done, run.save_every, run.steps) and good)
        try:
            _stop_if_hopeless(run, progress)
            if saves:
                _stop_if_broken(run, progress)
        except RuntimeError as error:  # of all processes alike: one of them tells
            error.told_elsewhere = not run.accelerator.is_main_process  # pyright: ignore[reportAttributeAccessIssue]
            raise
        if saves:
            _save(run, progress)
    return progress


def _due(done: int, every: int, steps: int) -> bool:
    return done == steps or (every > 0 and done % every == 0)


def _look(run: Run, progress: Progress) -> dict[str, Any]:
    """What the callbacks that are due after this step say, and whether that is the best so far."""
    seen: dict[str, Any] = {}
    for callback in run.callbacks:
        if _due(progress.step, callback.every, run.steps):
            seen |= dict(callback.call(progress.step, run.objective))
    stopping = run.early_stopping
    if stopping is not None and stopping.metric in seen:
        value, loss = seen[stopping.metric], seen.get("validation/loss", 0.0)
        tie = value == progress.best and loss < progress.best_loss  # a dev split may be small
        if progress.best is None or value > progress.best or tie:
            progress.best, progress.best_loss, progress.best_step = value, loss, progress.step
            progress.looks_since_best = 0
            on_main(run.accelerator, lambda: stopping.keep(progress.step))
        else:
            progress.looks_since_best += 1
            progress.ended = 0 < stopping.patience <= progress.looks_since_best
    return seen


def _set_learning_rate(run: Run, step: int) -> float:
    lr = run.learning_rate(step)
    for group in run.optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    return lr


def _seed_everything(run: Run, step: int) -> None:
    """Drop path and dropout draw from torch's generators, timm's augmentations from all three: seeded by the step,
    there is nothing to save.
    """
    low, high = randomness.key(run.seed, f"step {step}, process {run.accelerator.process_index}")
    torch.manual_seed(low | high << 32)
    if run.augment is not None:
        random.seed(low)
        np.random.seed(high)  # noqa: NPY002  timm's mixup knows no other


def _gradients(
    run: Run, model: nn.Module, loader: Iterator[Batch], *, score: bool
) -> tuple[Tensor, Scores, list[tuple[int, str]]]:
    """Accumulate the gradient of one step's mean loss; the loss is this process's share of it."""
    parts = run.share.accumulation
    device, pin = run.accelerator.device, run.accelerator.device.type == "cuda"
    losses, scores, damaged = [], {}, []
    run.objective.train()
    for part in range(parts):
        batch = next(loader)
        damaged += batch.damaged
        pixels = batch.pixels.to(device, non_blocking=pin)
        samples = batch.samples.to(device, non_blocking=pin)
        labels = None if batch.labels is None else batch.labels.to(device, non_blocking=pin)
        if run.augment is not None and labels is not None:
            pixels, labels = run.augment(pixels, labels)
        with run.accelerator.no_sync(model) if part < parts - 1 else nullcontext():
            with run.accelerator.autocast():
                prediction = model(pixels, samples, labels)
            (prediction.loss / parts).backward()
        losses.append(prediction.loss.detach())
        if score:
            with torch.no_grad():
                scores = sums.add(scores, run.objective.scores(prediction, pixels))  # pyright: ignore
    return torch.stack(losses).mean(), scores, damaged


def _gradient_norm(run: Run) -> float:
    """The global norm, before it is clipped. The same in every process, since gradients are averaged by now."""
    parameters = [p for p in run.objective.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if run.clip_grad is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, run.clip_grad, norm)
    return float(norm)


def _agree(run: Run, loss: Tensor, damaged: list[tuple[int, str]]) -> tuple[float, bool, bool]:
    """The mean loss, whether any process was asked to stop, whether any found damaged images."""
    facts = torch.tensor([float(loss), float(run.stop.asked() is not None), float(bool(damaged))], dtype=torch.float64)
    if run.accelerator.num_processes > 1:
        facts = run.accelerator.reduce(facts.to(run.accelerator.device), "sum")
        assert isinstance(facts, Tensor)
    total, stops, finds = facts.tolist()
    return total / run.accelerator.num_processes, stops > 0, finds > 0


def _note_damaged(run: Run, progress: Progress, damaged: list[tuple[int, str]]) -> dict[str, Any]:
    """Remember the rows that could not be decoded; what is new is named in the journal."""
    everyone = gather_object(damaged) if run.accelerator.num_processes > 1 else damaged
    new = {row: reason for row, reason in everyone if row not in progress.damaged}
    if not new:
        return {}
    progress.damaged |= new
    rows = run.crops.images.rows
    for row, reason in new.items():
        run.journal.say(f"{rows.where(row)} cannot be decoded, its neighbour stands in: {reason}")
    listed = [{"row": rows.number(row), "where": rows.where(row), "reason": reason} for row, reason in new.items()]
    return {"damaged": len(progress.damaged), "damaged_images": listed}


def _stop_if_hopeless(run: Run, progress: Progress) -> None:
    if progress.skipped_in_a_row >= run.max_skipped:
        raise NonFiniteError(
            f"{progress.skipped_in_a_row} steps in a row, up to step {progress.step}, had a loss or gradient that is "
            f"not finite. {_kept(run)} "
            "Try a smaller optimizer.lr, a longer optimizer.warmup, or training.precision=float32, in another "
            "output_dir or with checkpoint.resume=false"
        )
    rows = len(run.crops.images)
    judged = max(min(progress.step * run.share.batch_size, rows), min(rows, FEWEST_JUDGED))
    allowed = max(run.max_bad_share * judged, 1 if run.max_bad_share else 0)  # a single one stops no small data set
    if len(progress.damaged) > allowed:
        where = run.crops.images.rows.where
        examples = "\n".join(f"  {where(row)}: {reason}" for row, reason in list(progress.damaged.items())[:5])
        raise TooManyDamagedError(
            f"{len(progress.damaged)} of {judged} images cannot be decoded, more than the share of "
            f"{run.max_bad_share:g} that data.max_bad_share allows; for example\n{examples}\n"
            "mend the files, or allow more in another output_dir or with checkpoint.resume=false"
        )


def _kept(run: Run) -> str:
    if run.checkpoints.is_empty():
        return "Nothing had been saved yet."
    return f"The last good checkpoint stands in {run.checkpoints.folder}."


def _stop_if_broken(run: Run, progress: Progress) -> None:
    """Refuse to save weights that are not finite, which a finite gradient can still make.

    Raises:
        NonFiniteError: in all processes alike, since they have the same weights.
    """
    if not all(bool(torch.isfinite(parameter).all()) for parameter in run.objective.parameters()):
        raise NonFiniteError(
            f"the weights are not finite after step {progress.step}. {_kept(run)} "
            "Try a smaller optimizer.lr, in another output_dir or with checkpoint.resume=false"
        )


def _summary(run: Run, scores: Scores) -> dict[str, float]:
    """The means of the step's scores over all processes."""
    if run.accelerator.num_processes > 1:
        stacked = run.accelerator.reduce(torch.stack(list(scores.values())).to(run.accelerator.device), "sum")
        assert isinstance(stacked, Tensor)
        scores = dict(zip(scores, stacked, strict=True))
    return run.objective.summary(sums.means(scores))  # pyright: ignore[reportCallIssue]


def _save(run: Run, progress: Progress) -> None:
    if run.accelerator.is_main_process:
        if run.journal.path.exists():
            flush(run.journal.path)
        state = {**run.state, "progress": progress.as_json()}
        first = run.checkpoints.is_empty()
        if not first:
            _export(run, progress)
        run.checkpoints.save(progress.step, run.objective, run.optimizer, state)
        if first:  # so that an export without any checkpoint says that checkpoints were lost
            _export(run, progress)
        if run.early_stopping is not None and progress.best is not None:
            run.early_stopping.settle(progress.best_step)
    run.accelerator.wait_for_everyone()


def _export(run: Run, progress: Progress) -> None:
    try:
        run.before_save()
    except Exception as error:  # safetensors has errors of its own for a full disk
        raise CheckpointError(
            f"the encoder of step {progress.step} could not be written: {error}\n"
            "make room or mend the disk, then give the same command to go on from the last checkpoint"
        ) from error


def _settle_buckets(run: Run, model: nn.Module) -> None:
    """One backward pass for nothing: DDP reorders its buckets after the first, which changes rounding.

    A resumed run has to start with the buckets that the interrupted one had.
    """
    buffers = {name: buffer.clone() for name, buffer in run.objective.named_buffers()}
    size = run.crops.settings.image_size
    pixels = torch.zeros(run.share.micro_batch_size, 3, size, size, dtype=torch.uint8, device=run.accelerator.device)
    zeros = torch.zeros(len(pixels), dtype=torch.int64, device=run.accelerator.device)
    with run.accelerator.autocast():
        loss = model(pixels, zeros, zeros).loss
    loss.backward()
    run.objective.zero_grad()
    for name, buffer in run.objective.named_buffers():
        buffer.copy_(buffers[name])


class _Clock:
    """Images a second since the last look, and the time that is left; saving and looking do not count."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._seconds, self._steps = 0.0, 0
        self._all_seconds, self._all_steps = 0.0, 0

    def step(self, seconds: float) -> float:
        """One step took so long."""
        self._seconds, self._steps = self._seconds + seconds, self._steps + 1
        self._all_seconds, self._all_steps = self._all_seconds + seconds, self._all_steps + 1
        return seconds

    def speed(self, progress: Progress) -> dict[str, float]:
        """What the journal says about speed; the next look starts afresh."""
        rate = self._steps * self._run.share.batch_size / self._seconds
        flops = rate * self._run.flops_per_image
        left = (self._run.steps - progress.step) * self._all_seconds / self._all_steps
        self._seconds, self._steps = 0.0, 0
        speed = {"images_per_second": rate, "seconds": progress.seconds, "seconds_left": left}
        if flops:
            speed["tflops_per_second"] = flops / 1e12
        if self._run.peak_flops:
            speed["share_of_peak"] = flops / self._run.peak_flops / self._run.accelerator.num_processes
        return speed

"""The one training loop: batches in, gradients, steps, checkpoints. It knows no objective by name."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpp import randomness
from mpp.data.loader import Batch, batches
from mpp.files import flush
from mpp.objective import scores as sums
from mpp.objective.scores import Scores
from mpp.training.checkpoint import Checkpoint, CheckpointError
from mpp.training.distributed import distribute, on_main, saved_buffers
from mpp.training.error_budget import note_damaged, stop_if_broken, stop_if_hopeless
from mpp.training.state import Progress, Run


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
    if run.settings.compile:
        run.objective.compile(fullgraph=True)
    model = distribute(run.accelerator, run.objective)
    if run.accelerator.num_processes > 1:
        _settle_buckets(run, model)
    progress = Progress()
    if checkpoint is not None:
        checkpoint.load_into(run.objective, run.optimizer)
        progress = Progress.from_json(checkpoint.state["progress"])
        on_main(run.accelerator, lambda: _export(run, progress))  # a kill may have come before
    numbers = run.batch_plan.micro_batches(progress.step, run.steps)
    pin = run.accelerator.device.type == "cuda"
    loader = batches(run.crops, numbers, workers=run.crops.settings.workers, pin=pin)
    if progress.pending_validation:
        progress.pending_validation = False
        if seen := _run_callbacks(run, progress):
            run.journal.write(progress.step, progress.step * run.batch_plan.batch_size, seen)
    clock = _Clock(run)
    statistics = saved_buffers(run.objective)
    stopped, paused = False, True
    while progress.step < run.steps and not stopped and not progress.ended:
        if paused:  # or the process that is ready first would wait in its step, and count that as training
            run.accelerator.wait_for_everyone()
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
            values |= note_damaged(run, progress, damaged)
        if progress.skipped_in_a_row:
            run.journal.say(f"step {done}: loss {loss:g}, gradient norm {norm:g}: not finite, the step is skipped")
            values["skipped"] = progress.skipped
        if logs:
            values |= _summary(run, scores) | {"gradient_norm": norm, "lr": lr} | clock.speed(progress)
        if stopped and done < run.steps:  # whoever asked for the stop may not wait for a validation
            progress.pending_validation = True
        else:
            values |= _run_callbacks(run, progress)
        paused = any(_due(done, callback.every, run.steps) for callback in run.callbacks)
        if values:
            run.journal.write(done, done * run.batch_plan.batch_size, values)
        # In the middle of steps that are not finite there is nothing to save; at the end there are the steps before.
        good = not progress.skipped_in_a_row or done == run.steps
        saves = stopped or progress.ended or (_due(done, run.save_every, run.steps) and good)
        try:
            stop_if_hopeless(run, progress)
            if saves:
                stop_if_broken(run, progress)
        except RuntimeError as error:  # all processes raise it: one of them reports it
            error.reported_elsewhere = not run.accelerator.is_main_process  # pyright: ignore[reportAttributeAccessIssue]
            raise
        if saves:
            _save(run, progress)
    return progress


def _due(done: int, every: int, steps: int) -> bool:
    return done == steps or (every > 0 and done % every == 0)


def _run_callbacks(run: Run, progress: Progress) -> dict[str, Any]:
    """The values of the callbacks that are due after this step; early stopping is decided by them."""
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
            progress.evaluations_without_improvement = 0
            on_main(run.accelerator, lambda: stopping.keep(progress.step))
        else:
            progress.evaluations_without_improvement += 1
            progress.ended = 0 < stopping.patience <= progress.evaluations_without_improvement
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
    parts = run.batch_plan.accumulation
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
                scores = sums.add(scores, run.objective.scores(prediction, pixels))
    return torch.stack(losses).mean(), scores, damaged


def _gradient_norm(run: Run) -> float:
    """The global norm, before it is clipped. The same in every process, since gradients are averaged by now."""
    parameters = [p for p in run.objective.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if run.settings.clip_grad is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, run.settings.clip_grad, norm)
    return float(norm)


def _agree(run: Run, loss: Tensor, damaged: list[tuple[int, str]]) -> tuple[float, bool, bool]:
    """The mean loss, whether any process was asked to stop, whether any found damaged images."""
    facts = torch.tensor([float(loss), float(run.stop.asked() is not None), float(bool(damaged))], dtype=torch.float64)
    if run.accelerator.num_processes > 1:
        facts = run.accelerator.reduce(facts.to(run.accelerator.device), "sum")
        assert isinstance(facts, Tensor)
    total, stops, finds = facts.tolist()
    return total / run.accelerator.num_processes, stops > 0, finds > 0


def _summary(run: Run, scores: Scores) -> dict[str, float]:
    """The means of the step's scores over all processes."""
    if run.accelerator.num_processes > 1:
        stacked = run.accelerator.reduce(torch.stack(list(scores.values())).to(run.accelerator.device), "sum")
        assert isinstance(stacked, Tensor)
        scores = dict(zip(scores, stacked, strict=True))
    return run.objective.summary(sums.means(scores))


def _save(run: Run, progress: Progress) -> None:
    if run.accelerator.is_main_process:
        if run.journal.path.exists():
            flush(run.journal.path)
        state = {**vars(run.record), "progress": progress.as_json()}
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
        run.export()
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
    pixels = torch.zeros(
        run.batch_plan.micro_batch_size, 3, size, size, dtype=torch.uint8, device=run.accelerator.device
    )
    zeros = torch.zeros(len(pixels), dtype=torch.int64, device=run.accelerator.device)
    with run.accelerator.autocast():
        loss = model(pixels, zeros, zeros).loss
    loss.backward()
    run.objective.zero_grad()
    for name, buffer in run.objective.named_buffers():
        buffer.copy_(buffers[name])


class _Clock:
    """Images a second since the last logged step, and the time that is left.

    What counts is the time of steps, waits for their images and gradients included; validation, saving, and waits for
    processes that do these do not count.
    """

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
        """The speed since the last call."""
        rate = self._steps * self._run.batch_plan.batch_size / self._seconds
        flops = rate * self._run.record.flops_per_image
        left = (self._run.steps - progress.step) * self._all_seconds / self._all_steps
        self._seconds, self._steps = 0.0, 0
        speed = {"images_per_second": rate, "seconds": progress.seconds, "seconds_left": left}
        if flops:
            speed["tflops_per_second"] = flops / 1e12
        if self._run.peak_flops:
            speed["share_of_peak"] = flops / self._run.peak_flops / self._run.accelerator.num_processes
        return speed

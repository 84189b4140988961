"""The training loop: batches, gradients, steps, callbacks, checkpoints. It knows no objective by name."""

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
from mpp.training.distributed import (
    adopt_statistics,
    distribute,
    mean_scores,
    on_main,
    saved_buffers,
    summed,
    to_device,
)
from mpp.training.error_budget import check_limits, check_weights, note_damaged
from mpp.training.state import Progress, Run


def train(run: Run, checkpoint: Checkpoint | None = None) -> Progress:
    """Train from a checkpoint, or from step 0, to the end or until a stop is requested; then the state is on disk.

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
        run.journal.write(progress.step, run.batch_plan.batch_size, _run_callbacks(run, progress))
    speed = _Speed(run, progress)
    stopped, paused = False, True
    while progress.step < run.steps and not stopped and not progress.ended:
        if paused:  # or the process that is ready first would wait in its step, and count that as training
            run.accelerator.wait_for_everyone()
        logs = _due(progress.step + 1, run.log_every, run.steps)
        values, stopped = _step(run, model, loader, progress, logs=logs)
        if logs:
            values |= speed(progress)
        if stopped and progress.step < run.steps:  # whoever asked for the stop may not wait for a validation
            progress.pending_validation = True
        else:
            values |= _run_callbacks(run, progress)
        paused = any(_due(progress.step, callback.every, run.steps) for callback in run.callbacks)
        run.journal.write(progress.step, run.batch_plan.batch_size, values)
        # In the middle of steps that are not finite there is nothing to save; at the end there are the steps before.
        good = not progress.skipped_in_a_row or progress.step == run.steps
        due = _due(progress.step, run.save_every, run.steps) or progress.step == run.checkpoints.pinned
        saves = stopped or progress.ended or (due and good)
        try:
            check_limits(run, progress)
            if saves:
                check_weights(run, progress)
        except RuntimeError as error:  # all processes raise it: one of them reports it
            error.reported_elsewhere = not run.accelerator.is_main_process  # pyright: ignore[reportAttributeAccessIssue]
            raise
        if saves:
            _save(run, progress)
    return progress


def _step(
    run: Run, model: nn.Module, loader: Iterator[Batch], progress: Progress, *, logs: bool
) -> tuple[dict[str, Any], bool]:
    """One optimizer step: values for the metrics log, and whether any process was asked to stop."""
    begun = time.perf_counter()
    lr = run.learning_rate(progress.step)
    for group in run.optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    _seed_everything(run, progress.step)
    statistics = saved_buffers(run.objective)
    before = [buffer.clone() for buffer in statistics]
    loss, scores, damaged = _gradients(run, model, loader, score=logs)
    norm = _gradient_norm(run)
    loss, stopped, any_damaged = _agree(run, loss, damaged)
    progress.step += 1
    if math.isfinite(loss) and math.isfinite(norm):
        run.optimizer.step()
        progress.skipped_in_a_row = 0
    else:
        _restore(statistics, before)  # batch norm has seen the images of the skipped step
        progress.skipped += 1
        progress.skipped_in_a_row += 1
    run.optimizer.zero_grad()
    progress.seconds += time.perf_counter() - begun
    run.journal.advance(loss)

    values = note_damaged(run, progress, damaged) if any_damaged else {}
    if progress.skipped_in_a_row:
        run.journal.say(f"step {progress.step}: loss {loss:g}, gradient norm {norm:g}: not finite, the step is skipped")
        values["skipped"] = progress.skipped
    if logs:
        values |= run.objective.summary(mean_scores(run.accelerator, scores)) | {"gradient_norm": norm, "lr": lr}
    return values, stopped


def _due(done: int, every: int, steps: int) -> bool:
    return done == steps or (every > 0 and done % every == 0)


def _run_callbacks(run: Run, progress: Progress) -> dict[str, Any]:
    """The values of the callbacks that are due after this step; they decide on early stopping."""
    seen: dict[str, Any] = {}
    if due := [callback for callback in run.callbacks if _due(progress.step, callback.every, run.steps)]:
        adopt_statistics(run.accelerator, run.objective)
        run.objective.eval()
    for callback in due:
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
    """Accumulate the gradient of one step's mean loss; the loss is the mean over this process's images."""
    count = run.batch_plan.accumulation
    losses, scores, damaged = [], {}, []
    run.objective.train()
    for number in range(1, count + 1):
        batch = to_device(next(loader), run.accelerator.device)
        damaged += batch.damaged
        pixels, labels = batch.pixels, batch.labels
        if run.augment is not None and labels is not None:
            pixels, labels = run.augment(pixels, labels)
        with run.accelerator.no_sync(model) if number < count else nullcontext():
            with run.accelerator.autocast():
                prediction = model(pixels, batch.samples, labels)
            (prediction.loss / count).backward()
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
    total, stops, finds = summed(run.accelerator, facts).tolist()
    return total / run.accelerator.num_processes, stops > 0, finds > 0


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
            "free disk space or repair the disk, then give the same command to resume from the last checkpoint"
        ) from error


def _settle_buckets(run: Run, model: nn.Module) -> None:
    """Run one backward pass and drop its gradient: DDP reorders its buckets after the first, which changes rounding.

    A resumed run has to start with the buckets that the interrupted one had.
    """
    statistics = saved_buffers(run.objective)
    before = [buffer.clone() for buffer in statistics]
    shape = run.batch_plan.micro_batch_size, 3, *2 * (run.crops.settings.image_size,)
    pixels = torch.zeros(shape, dtype=torch.uint8, device=run.accelerator.device)
    zeros = torch.zeros(len(pixels), dtype=torch.int64, device=run.accelerator.device)
    with run.accelerator.autocast():
        loss = model(pixels, zeros, zeros).loss
    loss.backward()
    run.objective.zero_grad()
    _restore(statistics, before)


def _restore(buffers: list[Tensor], before: list[Tensor]) -> None:
    for buffer, value in zip(buffers, before, strict=True):
        buffer.copy_(value)


class _Speed:
    """Images a second since the last call, and the time that is left.

    Only steps count, waits for their images and gradients included; not validation, saving, and waits for processes
    that do these.
    """

    def __init__(self, run: Run, progress: Progress) -> None:
        self._run = run
        self._first = self._last = progress.step, progress.seconds

    def __call__(self, progress: Progress) -> dict[str, float]:
        now = progress.step, progress.seconds
        rate = (now[0] - self._last[0]) * self._run.batch_plan.batch_size / (now[1] - self._last[1])
        left = (self._run.steps - now[0]) * (now[1] - self._first[1]) / (now[0] - self._first[0])
        self._last = now
        flops = rate * self._run.record.flops_per_image
        speed = {"images_per_second": rate, "seconds": progress.seconds, "seconds_left": left}
        if flops:
            speed["tflops_per_second"] = flops / 1e12
        if self._run.peak_flops:
            speed["share_of_peak"] = flops / self._run.peak_flops / self._run.accelerator.num_processes
        return speed

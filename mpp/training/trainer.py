"""The training loop: steps, callbacks, checkpoints. It knows no objective by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mpp.data.loader import batches
from mpp.files import flush
from mpp.training.checkpoint import Checkpoint, CheckpointError
from mpp.training.distributed import adopt_statistics, distribute, on_main, saved_buffers
from mpp.training.error_budget import check_limits, check_weights
from mpp.training.state import Progress, Run
from mpp.training.step import Steps


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
    steps = Steps(run, model, loader, progress)
    speed = _Speed(run, steps)
    stopped, paused = False, True
    while progress.step < run.steps and not stopped and not progress.ended:
        if paused:  # or the process that is ready first would wait in its step, and count that as training
            run.accelerator.wait_for_everyone()
        step = progress.step + 1
        logs = _due(step, run.log_every, run.steps)
        saves = _due(step, run.save_every, run.steps) or step == run.checkpoints.pinned
        paused = any(_due(step, callback.every, run.steps) for callback in run.callbacks)
        values = steps.take(logs=logs, settle=saves or paused)
        if stopped := steps.stopping:
            values |= steps.settle()
        if logs:
            values |= speed()
        if stopped and progress.step < run.steps:  # whoever asked for the stop may not wait for a validation
            progress.pending_validation = True
        else:
            values |= _run_callbacks(run, progress)
        run.journal.write(progress.step, run.batch_plan.batch_size, values)
        # In the middle of steps that are not finite there is nothing to save; at the end there are the steps before.
        good = not progress.skipped_in_a_row or step == run.steps
        saves = stopped or progress.ended or (saves and good)
        try:
            check_limits(run, progress, steps.settled)
            if saves:
                check_weights(run, progress)
        except RuntimeError as error:  # all processes raise it: one of them reports it
            error.reported_elsewhere = not run.accelerator.is_main_process  # pyright: ignore[reportAttributeAccessIssue]
            raise
        if saves:
            _save(run, progress)
    return progress


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
    drawn = {} if run.crops.draw is None else {"draw": run.crops.draw(zeros)}
    with run.accelerator.autocast():
        loss = model(pixels, zeros, zeros, **drawn).loss
    loss.backward()
    run.objective.zero_grad()
    for buffer, value in zip(statistics, before, strict=True):
        buffer.copy_(value)


class _Speed:
    """Images a second since the last call, and the time that is left.

    Only steps count, waits for their images and gradients included; not validation, saving, and waits for processes
    that do these.
    """

    def __init__(self, run: Run, steps: Steps) -> None:
        self._run, self._steps = run, steps
        self._first = self._last = steps.progress.step, steps.progress.seconds
        self._waited = 0.0

    def __call__(self) -> dict[str, float]:
        progress, steps = self._steps.progress, self._steps
        now = progress.step, progress.seconds
        rate = (now[0] - self._last[0]) * self._run.batch_plan.batch_size / (now[1] - self._last[1])
        left = (self._run.steps - now[0]) * (now[1] - self._first[1]) / (now[0] - self._first[0])
        self._last = now
        flops = rate * self._run.record.flops_per_image
        speed = {"images_per_second": rate, "seconds": progress.seconds, "seconds_left": left}
        speed["seconds_waiting"], self._waited = steps.waited - self._waited, steps.waited
        if steps.to_first_step:
            speed["seconds_to_first_step"], steps.to_first_step = steps.to_first_step, 0.0
        if self._run.accelerator.device.type == "cuda":
            speed["gpu_memory_gb"] = torch.cuda.max_memory_reserved() / 1e9
        if flops:
            speed["tflops_per_second"] = flops / 1e12
        if self._run.peak_flops:
            speed["share_of_peak"] = flops / self._run.peak_flops / self._run.accelerator.num_processes
        return speed

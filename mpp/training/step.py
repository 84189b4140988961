"""One optimizer step after another. The host never waits for the device: it reads what a step decided a step later."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from mpp import randomness
from mpp.data.loader import Batch
from mpp.objective import scores as sums
from mpp.objective.scores import Scores, precise
from mpp.training.distributed import mean_scores, saved_buffers, summed, to_device
from mpp.training.error_budget import note_damaged
from mpp.training.optimizer import SkippableStep
from mpp.training.state import Progress, Run
from mpp.training.streams import Part, Streams, number_of_streams


class Outcome(NamedTuple):
    """What a step decided, on its way to the host."""

    step: int
    facts: Tensor
    """`(4,)` in main memory: mean loss, gradient norm, and the processes that were asked to stop or found damage."""
    arrived: torch.cuda.Event | None
    """When `facts` can be read; None for at once."""
    damaged: list[tuple[int, str]]
    """Of this process."""


class Steps:
    """The optimizer steps of a run. `progress` counts those that are done, and their errors once the host knows them.

    A step whose loss or gradient is not finite, in any process, is skipped by the device itself. Losses, errors, and
    stops that another process was asked for are known one step later, or at once if the step is to `settle`.
    """

    def __init__(self, run: Run, model: nn.Module, loader: Iterator[Batch], progress: Progress) -> None:
        self.run, self.progress = run, progress
        self.settled = progress.step
        """The last step whose outcome is known."""
        self._model, self._loader = model, loader
        self._optimizer_step = SkippableStep(run.optimizer)
        self._pending: Outcome | None = None
        images = run.batch_plan.micro_batch_size
        streams = number_of_streams(run.settings, run.objective, images, run.accelerator)
        self._streams = Streams(run.objective, streams) if streams > 1 else None
        self._others_stop, self._norm = False, math.nan
        self.waited = 0.0
        """Seconds of all steps so far that this process waited for its images."""
        self.to_first_step: float | None = None
        """Seconds from the start of this process to the end of its first step."""

    @property
    def stopping(self) -> bool:
        """Whether a stop was asked for; the same in all processes."""
        alone = self.run.accelerator.num_processes == 1
        return self.run.stop.asked() is not None if alone else self._others_stop

    def take(self, *, logs: bool, settle: bool) -> dict[str, Any]:
        """Take a step. Returns values for the metrics log, where it is logged or its outcome is waited for.

        Args:
            logs: compute the scores; the outcome of such a step is always waited for.
            settle: wait for the outcome.
        """
        begun, run, progress = time.perf_counter(), self.run, self.progress
        lr = run.learning_rate(progress.step)
        for group in run.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self._seed_everything()
        statistics = saved_buffers(run.objective)
        before = [buffer.clone() for buffer in statistics]
        loss, scores, damaged = self._gradients(score=logs)
        norm = self._gradient_norm()
        loss, stops, finds = self._agree(loss, damaged)
        if found := self.settle():  # the outcome of the step before: the device went on while this one was prepared
            run.journal.write(progress.step, run.batch_plan.batch_size, found)
        skip = ~(loss.isfinite() & norm.isfinite())
        self._optimizer_step(skip)
        for buffer, value in zip(statistics, before, strict=True):  # batch norm has seen the images of a skipped step
            buffer.copy_(torch.where(skip, value, buffer))
        run.optimizer.zero_grad()
        progress.step += 1
        facts, arrived = to_host(torch.stack([loss, norm.to(loss.dtype), stops, finds]))
        self._pending = Outcome(progress.step, facts, arrived, damaged)
        values = self.settle() if logs or settle else {}
        if logs:
            means = mean_scores(run.accelerator, scores)
            values |= run.objective.summary(means) | {"gradient_norm": self._norm, "lr": lr}
        progress.seconds += time.perf_counter() - begun
        if self.to_first_step is None:
            self.to_first_step = time.time() - psutil.Process().create_time()
        return values

    def settle(self) -> dict[str, Any]:
        """Wait for the outcome of the last step, and count it. Returns its damaged images, and that it was skipped."""
        if self._pending is None:
            return {}
        (step, facts, arrived, damaged), self._pending = self._pending, None
        if arrived is not None:
            arrived.synchronize()
        loss, self._norm, stops, finds = facts.tolist()
        run, progress = self.run, self.progress
        self.settled, self._others_stop = step, stops > 0
        run.journal.advance(loss)
        values = note_damaged(run, progress, damaged) if finds else {}
        if math.isfinite(loss) and math.isfinite(self._norm):
            progress.skipped_in_a_row = 0
        else:
            self._optimizer_step.undo()
            progress.skipped += 1
            progress.skipped_in_a_row += 1
            run.journal.say(
                f"step {step}: loss {loss:g}, gradient norm {self._norm:g}: not finite, the step is skipped"
            )
            values["skipped"] = progress.skipped
        return values

    def _seed_everything(self) -> None:
        """Drop path and dropout draw from torch's generators, timm's augmentations from all three: seeded by the step,
        there is nothing to save.
        """
        run, process = self.run, self.run.accelerator.process_index
        low, high = randomness.key(run.seed, f"step {self.progress.step}, process {process}")
        torch.manual_seed(low | high << 32)
        if run.augment is not None:
            random.seed(low)
            np.random.seed(high)  # noqa: NPY002  timm's mixup knows no other

    def _gradients(self, *, score: bool) -> tuple[Tensor, Scores, list[tuple[int, str]]]:
        """Accumulate the gradient of one step's mean loss; the loss is the mean over this process's images."""
        run, count = self.run, self.run.batch_plan.accumulation
        losses, scores, damaged = [], {}, []
        run.objective.train()
        for number in range(1, count + 1):
            begun = time.perf_counter()
            batch = next(self._loader)
            self.waited += time.perf_counter() - begun
            batch = to_device(batch, run.accelerator.device)
            damaged += batch.damaged
            pixels, labels = batch.pixels, batch.labels
            if run.augment is not None and labels is not None:
                pixels, labels = run.augment(pixels, labels)
            given: dict[str, Tensor | None] = {"pixels": pixels, "samples": batch.samples, "labels": labels}
            if batch.draw is not None:
                given["draw"] = batch.draw
            with run.accelerator.no_sync(self._model) if number < count else nullcontext():
                parts = self._backward(given, 1 / count)
            losses += [part.prediction.loss.detach() for part in parts]
            if score:
                with torch.no_grad():
                    for part in parts:
                        scores = sums.add(scores, run.objective.scores(part.prediction, part.pixels))
        return torch.stack(losses).mean(), scores, damaged

    def _backward(self, given: dict[str, Tensor | None], weight: float) -> list[Part]:
        if self._streams is not None:
            return self._streams.backward(given, weight, self.run.accelerator.autocast)
        with self.run.accelerator.autocast():
            prediction = self._model(**given)
        (prediction.loss * weight).backward()
        pixels = given["pixels"]
        assert pixels is not None
        return [Part(prediction, pixels)]

    def _gradient_norm(self) -> Tensor:
        """The global norm, before it is clipped. The same in every process, since gradients are averaged by now."""
        run = self.run
        parameters = [p for p in run.objective.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if run.settings.clip_grad is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, run.settings.clip_grad, norm)
        return norm

    def _agree(self, loss: Tensor, damaged: list[tuple[int, str]]) -> tuple[Tensor, Tensor, Tensor]:
        """The mean loss over the processes, how many were asked to stop, how many found damaged images."""
        run, kind = self.run, precise(loss.device)
        own = torch.tensor([run.stop.asked() is not None, bool(damaged)], dtype=kind)
        own = own.to(loss.device, non_blocking=loss.device.type == "cuda")
        total, stops, finds = summed(run.accelerator, torch.cat([loss.to(kind)[None], own])).unbind()
        return total / run.accelerator.num_processes, stops, finds


def to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A copy in main memory, and when it has arrived: CUDA copies into pinned memory while the host goes on."""
    if values.device.type != "cuda":
        return values.detach().cpu(), None
    copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    copy.copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return copy, arrived

"""On processors: the parts of a micro-batch side by side, each in a thread of its own.

Two threads that share every operation wait for each other at each one, and the short ones are not shared at all. Two
that take half of the images each do not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from mpp.objective.base import Objective
from mpp.training.distributed import saved_buffers
from mpp.training.settings import TrainingSettings

FEWEST_IMAGES = 8
"""Of a stream: with fewer, its matrix products are too small."""
MOST_BYTES = 2**31
"""Of all streams' gradients together."""


class Part(NamedTuple):
    """What a stream did."""

    prediction: Any
    """Of the objective, from its images."""
    pixels: Tensor


def number_of_streams(settings: TrainingSettings, objective: Objective, images: int, accelerator: Accelerator) -> int:
    """How many streams a run has: as many as threads, where that gives the same as one stream up to rounding.

    Args:
        settings: `streams` may name a number.
        objective: what is trained.
        images: of a micro-batch.
        accelerator: with streams there is one process, on a CPU.

    Raises:
        SettingError: if more are asked for than there can be.
    """
    asked, threads = settings.streams, torch.get_num_threads()
    if asked == 1 or (asked is None and threads == 1):
        return 1
    obstacle = _obstacle(settings, objective, accelerator)
    if asked is not None:
        if obstacle or images % asked:
            reason = obstacle or f"a micro-batch of {images} images cannot be divided by {asked}"
            raise settings.error(streams=f"{asked} streams are not possible: {reason}; leave it out, or set it to 1")
        return asked
    if obstacle:
        return 1
    size = sum(p.numel() * p.element_size() for p in objective.parameters() if p.requires_grad)
    fitting = (
        streams for streams in range(threads, 0, -1)
        if threads % streams == 0 and images % streams == 0 and images // streams >= FEWEST_IMAGES
        and streams * size <= MOST_BYTES
    )  # fmt: skip
    return next(fitting, 1)


def _obstacle(settings: TrainingSettings, objective: Objective, accelerator: Accelerator) -> str:
    """Why there can be one stream only."""
    if accelerator.device.type != "cpu":
        return "they are for CPUs"
    if accelerator.num_processes > 1:
        return "there are several processes"
    if settings.compile:
        return "the network is compiled"
    if saved_buffers(objective):
        return "the network has batch norm, which looks at all images together"
    if _draws(objective):
        return "the network draws random numbers (dropout, drop path), which threads would do in any order"
    return ""


class Streams:
    """Forward and backward passes of the parts of a micro-batch, at the same time."""

    def __init__(self, objective: Objective, count: int) -> None:
        self.count, self._threads = count, torch.get_num_threads()
        self._parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        shared = {id(tensor): tensor for tensor in (*objective.parameters(), *objective.buffers())}
        # A module's hooks are its own, so each stream has a copy, on the same weights.
        self._modules = [objective, *(copy.deepcopy(objective, dict(shared)) for _ in range(count - 1))]
        self._pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(self._each,))

    @property
    def _each(self) -> int:
        return max(self._threads // self.count, 1)

    def backward(
        self, given: dict[str, Tensor | None], weight: float, autocast: Callable[..., AbstractContextManager[Any]]
    ) -> list[Part]:
        """Add `weight` times the gradient of the mean loss to the gradients of the weights, always in the same order.

        Args:
            given: arguments of the objective by name, tensors with the images in their first dimension, `draw` in its
                second.
            weight: of the loss.
            autocast: makes a context for the forward pass.
        """
        parts = [{} for _ in range(self.count)]
        for name, value in given.items():
            split = [None] * self.count if value is None else value.chunk(self.count, dim=int(name == "draw"))
            for part, piece in zip(parts, split, strict=True):
                part[name] = piece
        torch.set_num_threads(self._each)  # a thread that is new takes over what was set last
        try:
            given_to = partial(self._gradient, weight=weight / self.count, autocast=autocast)
            done = list(self._pool.map(given_to, self._modules, parts))
        finally:
            torch.set_num_threads(self._threads)
        for parameter, *gradients in zip(self._parameters, *(gradients for _, gradients in done), strict=True):
            for gradient in gradients:
                if gradient is None:
                    continue
                if gradient.stride() != parameter.stride():  # as backward() has it: fused optimisers read raw memory
                    gradient = torch.empty_like(parameter).copy_(gradient)
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return [part for part, _ in done]

    def _gradient(
        self,
        module: Objective,
        given: dict[str, Any],
        *,
        weight: float,
        autocast: Callable[..., AbstractContextManager[Any]],
    ) -> tuple[Part, tuple[Tensor | None, ...]]:
        with autocast():
            prediction = module(**given)
        gradients = torch.autograd.grad(prediction.loss * weight, self._parameters, allow_unused=True)
        return Part(prediction, given["pixels"]), gradients


def _draws(objective: Objective) -> bool:
    """Whether a forward pass in training draws from torch's generator, as dropout and drop path do."""
    size = objective.encoder.image_size
    before = torch.get_rng_state()
    with torch.no_grad():
        objective.train()
        zeros = torch.zeros(1, dtype=torch.int64)
        objective.forward(torch.zeros(1, 3, size, size, dtype=torch.uint8), zeros, zeros)
    drawn = not torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(before)
    return drawn

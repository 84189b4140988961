"""A step: what it skips, and that the host does not wait for the device before it logs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import mpp
from mpp.training import step as steps
from mpp.training.optimizer import SkippableStep, make_optimizer
from mpp.training.settings import OptimizerSettings

READS = {"item", "tolist", "__bool__", "__float__", "__int__", "__index__", "numpy", "__array__", "cpu"}
"""Methods by which Python reads values off a device."""
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2"}
"""Operators whose result the host waits for, in the backward pass too; so it does for an index by a mask."""


class Watch:
    """Notes what would make the host wait for a device, while it is on."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.on = False

    @contextmanager
    def __call__(self, on: bool = True) -> Iterator[None]:
        before, self.on = self.on, on
        try:
            with _Reads(self), _Waits(self):
                yield
        finally:
            self.on = before

    def note(self, name: str) -> None:
        if self.on:
            self.seen.append(name)


class _Reads(TorchFunctionMode):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in READS:
            self.watch.note(func.__name__)
        return func(*args, **(kwargs or {}))


class _Waits(TorchDispatchMode):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).split(".")[1]
        by_mask = name.startswith("index") and any(
            isinstance(part, Tensor) and part.dtype == torch.bool
            for given in args[1:] for part in (given if isinstance(given, list | tuple) else [given])
        )  # fmt: skip
        if name in WAITS or by_mask:
            self.watch.note(name)
        return func(*args, **(kwargs or {}))


def test_what_makes_the_host_wait_is_seen():
    watch, values = Watch(), torch.arange(3.0, requires_grad=True)
    with watch():
        float(values.sum())
        values[values > 1].sum().backward()
        values.tolist()
        bool(values.sum() > 0)
        _ = values.nonzero()
    assert {"__float__", "index", "tolist", "__bool__", "_local_scalar_dense", "nonzero"} <= set(watch.seen), watch.seen
    with watch(on=False):
        float(values.sum())
    assert watch.seen.count("__float__") == 1


@pytest.mark.parametrize("changes", [
    (),
    ("objective.target={kind: downsized}", "encoder.patch_size=8"),
    ("objective.target={kind: full_patch, normalize: true}", "training.micro_batch_size=4"),
    ("objective={kind: supervised}", "optimizer={name: sgd, lr: 0.01}"),
])  # fmt: skip
def test_nothing_is_read_off_the_device_between_logged_steps(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, changes: tuple[str, ...]
):
    """In a run itself. What reads main memory is left out: the loader, and the outcome of the step before."""
    watch, quiet = Watch(), []
    take, settle, to_host, gradients = (
        steps.Steps.take, steps.Steps.settle, steps.to_host, steps.Steps._gradients
    )  # fmt: skip

    class Unwatched:
        def __init__(self, loader: Iterator[Any]) -> None:
            self.loader = loader

        def __next__(self) -> Any:
            with watch(on=False):
                return next(self.loader)

    def watched_take(self: steps.Steps, *, logs: bool, settle: bool) -> dict[str, Any]:
        with watch(on=not (logs or settle)):
            if watch.on:
                quiet.append(self.progress.step + 1)
            return take(self, logs=logs, settle=settle)

    def unwatched_settle(self: steps.Steps) -> dict[str, Any]:
        with watch(on=False):
            return settle(self)

    def unwatched_copy(values: Tensor) -> Any:
        with watch(on=False):
            return to_host(values)

    def gradients_of(self: steps.Steps, *, score: bool) -> Any:
        if not isinstance(self._loader, Unwatched):
            self._loader = Unwatched(self._loader)  # pyright: ignore[reportAttributeAccessIssue]
        return gradients(self, score=score)

    monkeypatch.setattr(steps.Steps, "take", watched_take)
    monkeypatch.setattr(steps.Steps, "settle", unwatched_settle)
    monkeypatch.setattr(steps.Steps, "_gradients", gradients_of)
    monkeypatch.setattr(steps, "to_host", unwatched_copy)
    mpp.train(tiny_recipe, ["journal.every={steps: 5}", *changes])
    assert len(quiet) > 3
    assert not watch.seen


def weights(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    """All that a step may change."""
    state = [value for entry in optimizer.state.values() for value in entry.values()]
    groups = [value for group in optimizer.param_groups for name, value in group.items() if name != "params"]
    return copy.deepcopy([list(module.state_dict().values()), state, groups])


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


NAMES = ["adamw", "adam", "sgd", "momentum", "lamb", "lars", "lion", "adafactor", "nadamw", "adopt", "muon"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("masked", [False, True], ids=["as here", "as on a GPU"])
def test_a_skipped_step_changes_nothing_and_others_are_those_of_the_optimiser(name: str, masked: bool):
    """A run with a skipped step in its middle ends as one that never had it."""

    def run(gradients: list[float]) -> list[Any]:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 4))
        optimizer = make_optimizer(module, OptimizerSettings(name=name, lr=0.01, weight_decay=0.0))
        step = SkippableStep(optimizer)
        for number, gradient in enumerate(gradients):
            torch.manual_seed(round(gradient * 10) if gradient == gradient else 0)
            for parameter in module.parameters():
                parameter.grad = torch.randn_like(parameter) * gradient
            skip = torch.tensor(gradient != gradient)
            if masked and number and not step._fused:
                step.masked(skip)
            else:
                step(skip)
            if gradient != gradient:
                step.undo()
        return weights(module, optimizer)

    nan = float("nan")
    assert same(run([0.1, nan, 0.3, nan, nan, 0.5]), run([0.1, 0.3, 0.5]))
    assert not same(run([0.1, 0.3]), run([0.1, 0.3, 0.5]))
    assert same(run([nan, 0.1, 0.3]), run([0.1, 0.3])), "a first step leaves nothing unset"


@pytest.mark.parametrize("name", ["adamw", "sgd", "momentum", "lamb", "kron"])
def test_a_first_step_may_be_skipped(name: str):
    module = nn.Linear(3, 2)
    optimizer = make_optimizer(module, OptimizerSettings(name=name, lr=0.1, weight_decay=0.0))
    before = copy.deepcopy(module.state_dict())
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, float("inf"))
    step = SkippableStep(optimizer)
    step(torch.tensor(True))
    assert same(list(before.values()), list(module.state_dict().values()))
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    step(torch.tensor(False))
    assert all(bool(value.isfinite().all()) for value in module.state_dict().values())
    assert not same(list(before.values()), list(module.state_dict().values()))

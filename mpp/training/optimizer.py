"""The optimiser, by name from timm, and the learning rate as a function of the step."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from timm import optim
from torch import Tensor, nn

from mpp.settings import Duration
from mpp.training.settings import OptimizerSettings, TrainingSettings

LearningRate = Callable[[int], float]
FUSED = ("adam", "adamw", "sgd", "momentum")


def make_optimizer(module: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """The optimiser over a module's trainable parameters; biases, norms and its `no_weight_decay()` do not decay.

    A SettingError for an unknown name, unknown arguments, or a layer-wise decay of a module without `layers()`.
    """
    known = [str(name) for name in optim.list_optimizers()]  # pyright: ignore[reportPrivateImportUsage]
    if settings.name not in known:
        near = difflib.get_close_matches(settings.name, known, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else f": {', '.join(known)}"
        raise settings.error(name=f"{settings.name!r} is not one of timm's optimisers{hint}")
    info = optim.get_optimizer_info(settings.name)  # pyright: ignore[reportPrivateImportUsage]
    if info.second_order:
        message = f"{settings.name} needs gradients of gradients, which are not computed; choose a first-order one"
        raise settings.error(name=message)
    groups = _groups(module, settings)
    arguments: dict[str, Any] = dict(settings.arguments)
    if settings.betas is not None:
        if not info.has_betas:
            raise settings.error(betas=f"betas {list(settings.betas)} do not fit {settings.name}; leave them out")
        arguments.setdefault("betas", settings.betas)
    if settings.name in FUSED:
        arguments.setdefault("fused", True)
    try:
        return optim.create_optimizer_v2(  # pyright: ignore[reportPrivateImportUsage]
            groups, opt=settings.name, lr=settings.lr, weight_decay=0.0, filter_bias_and_bn=False, **arguments
        )
    except (TypeError, AssertionError, ImportError, ValueError, RuntimeError) as error:
        message = f"{settings.name} cannot be made: {error}; see its arguments in timm, and leave betas out"
        raise settings.error(arguments=f"{message} for an optimiser without moments") from error


def _groups(module: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """The trainable parameters by weight decay, and by layer if the learning rate decays with depth."""
    exempt = module.no_weight_decay() if hasattr(module, "no_weight_decay") else set()  # pyright: ignore
    if settings.layer_decay is None:
        groups = optim.param_groups_weight_decay(module, settings.weight_decay, no_weight_decay_list=exempt)  # pyright: ignore
    else:
        if not hasattr(module, "layers"):
            raise settings.error(layer_decay="layer_decay is for classification, whose layers lead up to one head")
        layers: dict[str, int] = module.layers()  # pyright: ignore[reportCallIssue]
        last = max(layers.values())
        by_layer: dict[tuple[int, bool], dict[str, Any]] = {}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                decays = parameter.ndim > 1 and name not in exempt
                scale = settings.layer_decay ** (last - layers[name])
                weight_decay = settings.weight_decay if decays else 0.0
                group = {"params": [], "lr_scale": scale, "weight_decay": weight_decay}
                by_layer.setdefault((layers[name], decays), group)["params"].append(parameter)
        groups = [by_layer[key] for key in sorted(by_layer)]
    if settings.name == "lars":  # biases and norms get plain SGD (You et al. 2017; so does MAE)
        for group in groups:
            if all(parameter.ndim <= 1 for parameter in group["params"]):
                group["always_adapt"] = False
    return groups


class SkippableStep:
    """Steps of an optimiser that change nothing where a flag says so, which only the device has to know.

    Fused optimisers of PyTorch skip by themselves (`found_inf`). For others, the old values are put back by the flag.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._fused = all(group.get("fused") for group in optimizer.param_groups)
        self._counters: list[tuple[dict[str, Any], str, Any]] = []
        self._nested: bool | None = None

    def __call__(self, skip: Tensor) -> None:
        """Take a step unless `skip`, a bool scalar on the device of the parameters."""
        optimizer: Any = self.optimizer
        if self._asks_the_host(skip):
            optimizer.found_inf = None
            if not skip:
                optimizer.step()
        elif self._fused:
            optimizer.grad_scale, optimizer.found_inf = None, skip.float()
            optimizer.step()
        else:
            self.masked(skip)

    def _asks_the_host(self, skip: Tensor) -> bool:
        """Whether the flag is read, which waits for the device, because a step could not be skipped there."""
        first = not self.optimizer.state
        if self._fused:
            if first and isinstance(self.optimizer, torch.optim.SGD):
                return self._has_unset_momentum()
            return False
        return first or skip.device.type == "cpu" or self._is_nested()  # first, there is nothing to put back

    def _has_unset_momentum(self) -> bool:
        """Whether PyTorch's SGD would leave its momentum unset if its first step was skipped.

        A momentum of zeros gives the same first step, but where dampening would count from then on.
        """
        for group in self.optimizer.param_groups:
            if group["momentum"] and group["dampening"]:
                return True
            for parameter in group["params"] if group["momentum"] else ():
                if parameter.grad is not None:
                    self.optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return False

    def _is_nested(self) -> bool:
        """Whether the state holds more than tensors and numbers: `masked` cannot put that back."""
        if self._nested is None:
            values = (value for state in self.optimizer.state.values() for value in state.values())
            self._nested = any(isinstance(value, list | tuple | dict) for value in values)
        return self._nested

    def masked(self, skip: Tensor) -> None:
        """Take a step, then put the old values back where `skip` is true; `undo` does so for what the host counts."""
        groups, states = self.optimizer.param_groups, self.optimizer.state.values()
        kept = [(holder, name, value) for holder in (*groups, *states) for name, value in holder.items()]
        there = [p for group in groups for p in group["params"] if p.grad is not None]
        there += [value for *_, value in kept if isinstance(value, Tensor) and value.device == skip.device]
        before = [tensor.detach().clone() for tensor in there]
        counters = [(holder, name, value) for holder, name, value in kept if isinstance(value, int | float)]
        counters += [(holder, name, value.clone()) for holder, name, value in kept
                     if isinstance(value, Tensor) and value.device != skip.device]  # fmt: skip
        self.optimizer.step()
        with torch.no_grad():
            for tensor, value in zip(there, before, strict=True):
                tensor.copy_(torch.where(skip, value, tensor))
        self._counters = [(holder, name, value) for holder, name, value in counters if name != "lr"]

    def undo(self) -> None:
        """Take back what the host has counted in the last step, which was skipped."""
        for holder, name, value in self._counters:
            holder[name] = value
        self._counters = []


class Schedule(NamedTuple):
    """The length of a run in steps, and its learning rates."""

    steps: int
    warmup: int
    decay: int
    """Of `wsd`; 0 for other schedules."""
    learning_rate: LearningRate

    @property
    def last_stable(self) -> int | None:
        """Steps before the decay of `wsd`: a run can be extended from there."""
        return self.steps - self.decay if self.decay else None


def plan_schedule(settings: OptimizerSettings, training: TrainingSettings, rows: int) -> Schedule:
    """The schedule of a recipe on so many training images. A warm-up as long as the run becomes a tenth of it.

    Raises:
        SettingError: if the run is too short for its decay.
    """
    size = training.batch_size
    in_steps = partial(Duration.in_steps, batch_size=size, rows=rows)
    steps, warmup = in_steps(training.duration), in_steps(settings.warmup)
    decay = in_steps(settings.decay) if settings.decay is not None else 0
    if warmup >= steps:
        warmup = steps // 10
    if decay and warmup + decay > steps:
        assert settings.decay is not None
        above = settings.location or "optimizer"
        fitting = (
            f"{above}.warmup.{_part(settings.warmup.unit, 0.1, steps, size, rows)} "
            f"{above}.decay.{_part(settings.decay.unit, 0.2, steps, size, rows)}"
        )
        message = f"warm-up and decay take {warmup} + {decay} steps, and the run has {steps}"
        raise settings.error(decay=f"{message}; give, for example, {fitting}")
    rate = learning_rate(settings, steps=steps, warmup=warmup, batch_size=size, decay=decay)
    return Schedule(steps, warmup, decay, rate)


def _part(unit: str, share: float, steps: int, batch_size: int, rows: int) -> str:
    """About a share of a run, as `unit=value`."""
    if unit == "epochs":
        return f"epochs={share * steps * batch_size / rows:.2g}"
    return f"{unit}={max(int(share * steps * (batch_size if unit == 'images' else 1)), 1)}"


def learning_rate(
    settings: OptimizerSettings, *, steps: int, warmup: int, batch_size: int, decay: int = 0
) -> LearningRate:
    """The learning rate of step 0, 1, …, steps − 1.

    It rises linearly over `warmup` steps, above 0 from the first, then falls to `final_lr` times the peak: from the end
    of the warm-up on, or with `wsd` over the last `decay` steps.
    """
    scale = batch_size / settings.base_batch_size
    peak = settings.lr * {"none": 1.0, "linear": scale, "sqrt": math.sqrt(scale)}[settings.lr_scaling]

    def at(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / warmup
        done = (step - warmup) / max(steps - warmup, 1)
        left = {
            "cosine": (1 + math.cos(math.pi * done)) / 2,
            "linear": 1 - done,
            "constant": 1.0,
            "wsd": min((steps - step) / max(decay, 1), 1.0),
        }[settings.schedule]
        return peak * (settings.final_lr + (1 - settings.final_lr) * left)

    return at

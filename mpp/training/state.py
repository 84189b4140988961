"""What a training run is made of, and what it remembers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from mpp.data.loader import TrainingCrops
from mpp.data.sampler import BatchPlan
from mpp.objective.base import Objective
from mpp.training.checkpoint import Checkpoints
from mpp.training.metrics_log import Journal
from mpp.training.optimizer import LearningRate
from mpp.training.settings import TrainingSettings
from mpp.training.signals import StopRequest


class Callback(NamedTuple):
    """Something to do every so often, and after the last step."""

    every: int
    """Steps; 0 means only after the last."""
    call: Callable[[int, Objective], Iterable[tuple[str, Any]]]
    """Called with the step and the objective, in every process; yields (name, value) pairs for the journal."""


class EarlyStopping(NamedTuple):
    """When to stop early, by the values of callbacks; and how to keep the best weights."""

    metric: str
    """The name of a value that the callbacks yield; the larger, the better."""
    patience: int
    """The run ends after so many evaluations in a row without improvement; 0 means never."""
    keep: Callable[[int], None]
    """Called with the step, by the main process, at every new best."""
    settle: Callable[[int], None]
    """Called with the step of the best, by the main process, after every save: older ones are not needed again."""


@dataclass
class Progress:
    """What a run remembers besides weights and optimiser. Samples seen are step × batch size."""

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0
    damaged: dict[int, str] = field(default_factory=dict)
    pending_validation: bool = False
    """The callbacks of this step were put off, because the run was asked to stop."""
    best: float | None = None
    """The best value of the early-stopping metric so far, and its step."""
    best_loss: float = 0.0
    best_step: int = 0
    evaluations_without_improvement: int = 0
    ended: bool = False
    """Early stopping has ended the run."""

    def as_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {**vars(self), "damaged": list(self.damaged.items())}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Progress:
        """The inverse of `as_json`; it reads what earlier versions wrote, too."""
        renamed = {"owes_a_look": "pending_validation", "looks_since_best": "evaluations_without_improvement"}
        saved = {renamed.get(name, name): value for name, value in saved.items()}
        return cls(**{**saved, "damaged": dict(saved["damaged"])})


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What every checkpoint says of its run, as JSON; progress and optimizer come beside it."""

    steps: int
    recipe: dict[str, Any]
    data: dict[str, Any]
    """What identifies the training images."""
    baselines: dict[str, float]
    flops_per_image: float
    precision: str
    """Of the first step."""
    hardware: str
    headline: tuple[str, str]
    """The score that is compared with the baselines, and its title."""
    source_weights: str | None
    """Digest of the weights that the encoder started from."""
    pool: str
    """What exports pool."""
    local: list[str]
    """Sections whose source is a path on this machine; what is published cuts it."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that the trainer works with."""

    settings: TrainingSettings
    objective: Objective
    crops: TrainingCrops
    """Their settings say how many loader processes there are, and how many images may be damaged."""
    batch_plan: BatchPlan
    steps: int
    seed: int
    optimizer: torch.optim.Optimizer
    learning_rate: LearningRate
    accelerator: Accelerator
    checkpoints: Checkpoints
    journal: Journal
    stop: StopRequest
    callbacks: list[Callback]
    """The same, with the same intervals, in every process: all wait for each other after one that is due."""
    log_every: int
    save_every: int
    export: Callable[[], None]
    """The main process calls it before each save but the first, after the first, and when a run resumes: an export
    without any checkpoint means that checkpoints were lost."""
    record: RunRecord
    augment: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    """uint8 pixels and labels of a training batch, on the device → others, of the same shape and type; labels may
    become probabilities `(b, classes)`."""
    early_stopping: EarlyStopping | None = None
    peak_flops: float = 0.0
    """Measured rate of a large matrix product, operations a second."""

"""The parts of a training run, and its state."""

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
    """Called at intervals, and after the last step."""

    every: int
    """Steps; 0 means only after the last."""
    call: Callable[[int, Objective], Iterable[tuple[str, Any]]]
    """Called in every process with the step and the objective in evaluation mode; yields (name, value) pairs to log."""


class EarlyStopping(NamedTuple):
    """Early stopping by a value of the callbacks, and how to keep the best weights."""

    metric: str
    """The name of a value that the callbacks yield; the larger, the better."""
    patience: int
    """The run ends after so many evaluations in a row without improvement; 0 means never."""
    keep: Callable[[int], None]
    """Called with the step, by the main process, at every new best."""
    settle: Callable[[int], None]
    """Called with the best step, by the main process, after every save: weights of earlier steps are not needed."""


@dataclass
class Progress:
    """The state of a run besides weights and optimiser. Samples seen are step × batch size."""

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0
    damaged: dict[int, str] = field(default_factory=dict)
    pending_validation: bool = False
    """The callbacks of this step are still to be called: the run was asked to stop."""
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
    """The run's description in every checkpoint, as JSON beside progress and optimizer."""

    steps: int
    recipe: dict[str, Any]
    data: dict[str, Any]
    """Identity of the training images."""
    baselines: dict[str, float]
    flops_per_image: float
    precision: str
    """Of the first step."""
    threads: int
    """Of a process, on CPU, at the first step."""
    hardware: str
    headline: tuple[str, str]
    """The score that is compared with the baselines, and its title."""
    unit: str
    """Of the loss; may be empty."""
    source_weights: str | None
    """Digest of the weights that the encoder started from."""
    pool: str
    """Pooling of the exported encoder."""
    local: list[str]
    """Sections whose source is a path on this machine; it is not published."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The arguments of the trainer."""

    settings: TrainingSettings
    objective: Objective
    crops: TrainingCrops
    """Their settings limit loader processes and damaged images."""
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
    """Called by the main process when a run resumes, after the first save, and before each later one: an export without
    any checkpoint means that checkpoints were lost."""
    record: RunRecord
    augment: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    """See `Augmentation.__call__`."""
    early_stopping: EarlyStopping | None = None
    peak_flops: float = 0.0
    """Measured rate of a large matrix product, operations a second."""

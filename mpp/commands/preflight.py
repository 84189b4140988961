"""Pre-flight checks that need timm or the process group: before any data is read, all mistakes at once."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from torch import nn

from mpp.data.sampler import plan_batches
from mpp.data.settings import DataSettings
from mpp.encoder.settings import EncoderSettings
from mpp.objective.settings import BaseObjectiveSettings
from mpp.settings import together
from mpp.training.optimizer import make_optimizer
from mpp.training.settings import OptimizerSettings, TrainingSettings


def check_training(recipe: Any, accelerator: Accelerator) -> None:
    """Refuse a network, an objective, an optimizer or batches that are not possible.

    Args:
        recipe: with data, encoder, objective, optimizer and training.
        accelerator: of this process group.

    Raises:
        SettingError: with all complaints.
    """
    together(
        lambda: check_network(recipe.encoder, recipe.data, patches=recipe.objective.needs_patches),
        lambda: check_objective(recipe.objective, recipe.encoder, recipe.data.image_size),
        lambda: check_optimizer(recipe.optimizer),
        lambda: _check_batches(recipe.training, accelerator),
    )


def check_network(settings: EncoderSettings, data: DataSettings, *, patches: bool) -> None:
    """Refuse what timm cannot build. What has a source is checked when it is loaded.

    Raises:
        SettingError: with all complaints.
    """
    if settings.source is None:
        settings.architecture(data.image_size, data, needs_patches=patches)


def check_objective(objective: BaseObjectiveSettings, encoder: EncoderSettings, image_size: int) -> None:
    """Refuse an objective that does not fit the patches. With a source it is checked when that is loaded.

    Raises:
        SettingError: with all complaints.
    """
    if not objective.needs_patches or encoder.source is not None:
        return
    try:
        layout = encoder.architecture(image_size, needs_patches=True).layout
    except ValueError:
        return  # check_network reports it
    assert layout is not None
    objective.check(layout)


def check_optimizer(settings: OptimizerSettings) -> None:
    """Refuse what timm cannot make.

    Raises:
        SettingError: with the complaint.
    """
    make_optimizer(nn.Linear(1, 1), settings.model_copy(update={"layer_decay": None}))


def _check_batches(training: TrainingSettings, accelerator: Accelerator) -> None:
    with training.blamed("batch_size"):
        plan_batches(training.batch_size, training.micro_batch_size, rank=0, processes=accelerator.num_processes)

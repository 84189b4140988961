"""Pre-flight checks that need timm or the process group: before any data is read, all mistakes at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from mpp.data.sampler import share
from mpp.data.settings import DataSettings
from mpp.encoder.create import build_backbone, build_encoder
from mpp.encoder.encoder import Encoder
from mpp.encoder.settings import EncoderSettings
from mpp.objective.settings import MaskedPatchSettings
from mpp.settings import SettingError
from mpp.training.optimizer import make_optimizer
from mpp.training.settings import OptimizerSettings


def together(*checks: Callable[[], object]) -> None:
    """Make every check, whatever the others found.

    Raises:
        SettingError: with all complaints.
    """
    complaints: dict[str, str] = {}
    for check in checks:
        try:
            check()
        except SettingError as error:
            complaints = error.complaints | complaints
    if complaints:
        raise SettingError(complaints)


def check_training(recipe: Any, accelerator: Accelerator, *, patches: bool) -> None:
    """Refuse a network, an optimiser or batches that cannot be had, in a recipe of a command that trains.

    Args:
        recipe: with data, encoder, optimizer and training.
        accelerator: of this launch.
        patches: whether the network has to be an encoder of patches.

    Raises:
        SettingError: with all complaints.
    """
    together(
        lambda: check_network(recipe.encoder, recipe.data, patches=patches),
        lambda: check_objective(recipe.objective, recipe.encoder, recipe.data.image_size),
        lambda: check_optimizer(recipe.optimizer),
        lambda: _check_batches(recipe, accelerator),
    )


def check_network(settings: EncoderSettings, data: DataSettings, *, patches: bool) -> None:
    """Refuse what timm cannot build. What is loaded from a source shows when it is.

    Raises:
        SettingError: with all complaints.
    """
    if settings.source is None:
        with torch.device("meta"):  # where weights take no memory
            (build_encoder if patches else build_backbone)(settings, data.image_size, data)


def check_objective(objective: Any, encoder: EncoderSettings, image_size: int) -> None:
    """Refuse a target or a corruption that does not fit the patches. Those of a source show when it is loaded.

    Raises:
        SettingError: with all complaints.
    """
    if not isinstance(objective, MaskedPatchSettings) or encoder.source is not None:
        return
    try:
        with torch.device("meta"):
            network = build_encoder(encoder, image_size)
    except ValueError:
        return  # check_network reports it
    check_patches(objective, network)


def check_patches(objective: MaskedPatchSettings, encoder: Encoder) -> None:
    """Refuse a target or a corruption that does not fit an encoder's patches.

    Raises:
        SettingError: with all complaints.
    """
    together(
        lambda: objective.target.outputs(encoder.patch_size), lambda: objective.corruption.check(encoder.num_patches)
    )


def check_optimizer(settings: OptimizerSettings) -> None:
    """Refuse what timm cannot make.

    Raises:
        SettingError: with the complaint.
    """
    make_optimizer(nn.Linear(1, 1), settings.model_copy(update={"layer_decay": None}))


def _check_batches(recipe: Any, accelerator: Accelerator) -> None:
    training = recipe.training
    with training.blamed("batch_size"):
        share(training.batch_size, training.micro_batch_size, rank=0, processes=accelerator.num_processes)

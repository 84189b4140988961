"""What takes timm, the launch or the data to judge in a recipe; mistakes are told as those of its settings.

What timm and the launch can tell is told before any data is read, and all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from torch import nn

from mpp.data.sampler import share
from mpp.encoder.build import planned
from mpp.encoder.encoder import Layout
from mpp.encoder.settings import EncoderSettings
from mpp.objective.settings import MaskedPatchSettings
from mpp.settings import SettingError
from mpp.training.optimizer import make_optimizer
from mpp.training.settings import OptimizerSettings


@contextmanager
def about(section: str, otherwise: str, **elsewhere: str) -> Iterator[None]:
    """Tell what a room refuses as mistakes in a section of the recipe.

    Args:
        section: dotted.
        otherwise: the setting of the section that is meant where the room does not say which.
        elsewhere: where settings are that the section itself does not have, dotted.

    Raises:
        SettingError: for any ValueError, with dotted settings.
    """
    try:
        yield
    except SettingError as error:
        named = {name: elsewhere.get(name) or f"{section}.{name}" for name in error.complaints}
        raise SettingError({named[name]: said for name, said in error.complaints.items()}) from error
    except ValueError as error:
        raise SettingError({f"{section}.{otherwise}": str(error)}) from error


@contextmanager
def of_study(part: str, data: str) -> Iterator[None]:
    """Tell mistakes in a recipe that a study made as those of the study's own settings.

    Args:
        part: the section that the recipe was made of.
        data: the section that its images come from.

    Raises:
        SettingError: of the study's settings.
    """
    try:
        yield
    except SettingError as error:
        sections = {"data": data, "encoder": "encoder"}
        named = {name: name.split(".", 1) for name in error.complaints}
        raise SettingError(
            {
                ".".join([sections.get(named[name][0], f"{part}.{named[name][0]}"), *named[name][1:]]): said
                for name, said in error.complaints.items()
            }
        ) from error


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
        lambda: check_network(recipe.encoder, recipe.data.image_size, "data.image_size", patches=patches),
        lambda: check_objective(recipe.objective, recipe.encoder, recipe.data.image_size),
        lambda: check_optimizer(recipe.optimizer, "optimizer"),
        lambda: _check_batches(recipe, accelerator),
    )


def check_network(
    settings: EncoderSettings, image_size: int, size_setting: str, *, patches: bool, section: str = "encoder"
) -> None:
    """Refuse what timm cannot build. What is loaded from a source shows when it is.

    Raises:
        SettingError: with all complaints.
    """
    if settings.source is None:
        with about_network(settings, size_setting, section):
            planned(settings, image_size, needs_patches=patches)


def check_objective(objective: Any, encoder: EncoderSettings, image_size: int) -> None:
    """Refuse a target or a corruption that does not fit the patches. Those of a source show when it is loaded.

    Raises:
        SettingError: with all complaints.
    """
    if not isinstance(objective, MaskedPatchSettings) or encoder.source is not None:
        return
    try:
        layout = planned(encoder, image_size, needs_patches=True).layout
    except ValueError:
        return  # which is told elsewhere
    assert layout is not None
    check_patches(objective, layout)


def check_patches(objective: MaskedPatchSettings, encoder: Layout) -> None:
    """Refuse a target or a corruption that does not fit an encoder's patches.

    Raises:
        SettingError: with all complaints.
    """

    def target() -> None:
        with about("objective.target", "cells"):
            objective.target.outputs(encoder.patch_size)

    def corruption() -> None:
        with about("objective.corruption", "swap" if encoder.num_patches < 2 else "fraction"):
            objective.corruption.check(encoder.num_patches)

    together(target, corruption)


@contextmanager
def about_network(
    settings: EncoderSettings, size_setting: str = "data.image_size", section: str = "encoder"
) -> Iterator[None]:
    """Tell what cannot be built or loaded as mistakes in the section that says which encoder.

    Raises:
        SettingError: for any ValueError.
    """
    with about(section, "name" if settings.source is None else "source", image_size=size_setting):
        yield


def check_optimizer(settings: OptimizerSettings, section: str) -> None:
    """Refuse what timm cannot make.

    Raises:
        SettingError: with the complaint.
    """
    with about(section, "name"):
        make_optimizer(nn.Linear(1, 1), settings.model_copy(update={"layer_decay": None}))


def _check_batches(recipe: Any, accelerator: Accelerator) -> None:
    with about("training", "batch_size"):
        training = recipe.training
        share(training.batch_size, training.micro_batch_size, rank=0, processes=accelerator.num_processes)

"""The units of a study: an arm with a seed, in one variant; and those of its pilot."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

from mpp.evaluation.settings import CONTROLS
from mpp.recipe import GapRecipe
from mpp.study.arms import Arm
from mpp.study.settings import StudySettings

PILOT = "pilot"
"""The folder of the pilot's units."""


class Variant(NamedTuple):
    """How a unit departs from the study's own settings."""

    swapped: bool = False
    """Upstream and downstream are exchanged."""
    images: int | None = None
    """Pre-training images; None is all of them."""
    size: str | None = None
    """Name of another encoder of `study.sizes`."""
    length: float | None = None
    """Of pre-training, in multiples of the recipe's."""
    corruption: float | None = None
    """Share of corrupted patches."""
    target: str | None = None
    """Name of another target of `study.targets`."""

    @property
    def path(self) -> list[str]:
        """The folders of its units."""
        names = {"images": self.images, "size": self.size, "length": self.length, "corruption": self.corruption,
                 "target": self.target}  # fmt: skip
        parts = [f"{name}-{value:g}" if isinstance(value, float) else f"{name}-{value}"
                 for name, value in names.items() if value is not None]  # fmt: skip
        return ["swapped", *parts] if self.swapped else parts


class Trial(NamedTuple):
    """What a unit of the pilot tries in pre-training; fine-tunings try the rest of the grid."""

    lr: float | None = None
    """The learning rate; None where nothing is tried."""


class Unit(NamedTuple):
    """What one process does: pre-train (if the arm does), evaluate frozen features, fine-tune."""

    arm: str
    seed: int
    variant: Variant = Variant()
    trial: Trial | None = None
    """Of a unit of the pilot."""

    def __str__(self) -> str:
        parts = self.variant.path
        if self.trial is not None:
            parts = [PILOT, *parts]
        rate = [f"lr-{self.trial.lr:g}"] if self.trial is not None and self.trial.lr is not None else []
        return "/".join([*parts, self.arm, *rate, f"seed-{self.seed}"])


class Tuning(NamedTuple):
    """One fine-tuning of a unit; in the pilot one of a grid."""

    fraction: float
    """Of the labels."""
    lr: float | None = None
    """None takes the study's own."""
    pool: str | None = None
    """None takes the encoder's own."""

    @property
    def folder(self) -> str:
        """Its folder in that of the unit."""
        tried = (f"-lr-{self.lr:g}" if self.lr else "") + (f"-{self.pool}" if self.pool else "")
        return f"finetune-{self.fraction:g}{tried}"


def units_of(recipe: GapRecipe) -> list[Unit]:
    """All units of a study after its pilot, seed by seed, so that an interrupted study can already be read."""
    study = recipe.study
    found: list[Unit] = []
    controls = CONTROLS if study.controls else ()
    for swapped in (False, True) if study.both_ways else (False,):
        for seed in study.seeds:  # controls too: the seed decides which labelled images there are, and the shots
            found += [Unit(arm, seed, Variant(swapped)) for arm in (*controls, *study.arms)]
            for variant in variants_of(study):
                other = study.sizes[variant.size] if variant.size else None
                arms = study.axis_arms if other is None or other.arms is None else other.arms
                here = variant._replace(swapped=swapped)
                found += [Unit(arm, seed, here) for arm in arms if _applies(study.arm(arm), variant)]
    return list(dict.fromkeys(found))


def variants_of(study: StudySettings) -> list[Variant]:
    """How units depart from the study's own settings: along one axis at a time, or with `crossed` along several."""
    axes: dict[str, tuple[Any, ...]] = {
        "images": study.images, "size": tuple(study.sizes), "length": study.lengths, "corruption": study.corruptions,
        "target": tuple(study.targets),
    }  # fmt: skip
    if not study.crossed:
        return [Variant(**{name: value}) for name, values in axes.items() for value in values]
    names = list(axes)
    combined = itertools.product(*((None, *values) for values in axes.values()))
    return [Variant()._replace(**dict(zip(names, values, strict=True))) for values in combined][1:]


def _applies(arm: Arm, variant: Variant) -> bool:
    """Whether an arm can depart in this way: all but the size are of pre-training, two of what is predicted."""
    if arm.objective is None:
        return variant == Variant(size=variant.size)
    known = type(arm.objective).model_fields
    return (variant.corruption is None or "corruption" in known) and (variant.target is None or "target" in known)


def pilot_units(recipe: GapRecipe) -> list[Unit]:
    """The units of the pilot: every arm with every pre-training rate of the grid."""
    study, pilot = recipe.study, recipe.study.pilot
    if pilot is None:
        return []
    found: list[Unit] = []
    for name in study.names:
        arm = study.arm(name)
        rates: tuple[float | None, ...] = pilot.lr if arm.objective is not None and pilot.lr else (None,)
        if arm.role != "control" and (len(rates) > 1 or recipe.finetuning.fractions):
            found += [Unit(name, pilot.seed, trial=Trial(rate)) for rate in rates]
    return found


def unit_named(recipe: GapRecipe, name: str) -> Unit:
    """The unit of this name.

    Raises:
        SettingError: if the study has no such unit.
    """
    known = {str(unit): unit for unit in (*pilot_units(recipe), *units_of(recipe))}
    if name not in known:
        raise recipe.study.error(only=f"there is no unit {name!r}; this study has {', '.join(known)}")
    return known[name]

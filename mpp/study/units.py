"""The units of a study (an arm with a seed, in one variant), and the recipes that each unit runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mpp.data.settings import DataSettings, LabelSettings, NetworkSizeSettings
from mpp.encoder.settings import EncoderSettings
from mpp.evaluation.settings import CONTROLS, FeatureSettings
from mpp.objective.settings import ObjectiveSettings
from mpp.recipe import EvaluateRecipe, FinetuneRecipe, GapRecipe, PretrainRecipe, differences
from mpp.settings import Duration
from mpp.study.settings import OtherEncoder
from mpp.training.settings import ComputeSettings, ReconstructionSettings, TrainingSettings

DECIDES_NOTHING = ("output_dir", "encoder.source", "data.workers", "data.cache", "training.micro_batch_size",
                   "training.compile", "features.batch_size", "controls", "journal.", "checkpoint.",
                   "hub.")  # fmt: skip
"""Settings that may differ between a study and its resumption."""
DRAWS = 1000
"""Seeds of few-shot draws that each seed of a study has: seed s draws with 1000·s + r."""


class Variant(NamedTuple):
    """How a unit departs from the study's own settings."""

    swapped: bool = False
    """Upstream and downstream are exchanged."""
    images: int | None = None
    """Pre-training images; None is all of them."""
    size: str | None = None
    """Name of another encoder of `study.sizes`."""


class Unit(NamedTuple):
    """What one process does: pre-train (if the arm does), evaluate frozen features, fine-tune."""

    arm: str
    seed: int
    variant: Variant = Variant()

    def __str__(self) -> str:
        swapped, images, size = self.variant
        parts = ["swapped" if swapped else "", f"images-{images}" if images else "", f"size-{size}" if size else ""]
        return "/".join(filter(None, (*parts, self.arm, f"seed-{self.seed}")))


@dataclass(frozen=True)
class Recipes:
    """What a unit runs, in this order; None for what its arm leaves out."""

    start: str
    """Of the arm."""
    pretrain: PretrainRecipe | None
    evaluate: EvaluateRecipe | None
    finetune: dict[str, FinetuneRecipe]
    """By the fraction of the labels."""

    def named(self) -> dict[str, PretrainRecipe | EvaluateRecipe | FinetuneRecipe]:
        """Each recipe by what it is for."""
        stages: dict[str, Any] = {"pretrain": self.pretrain, "evaluate": self.evaluate}
        stages |= {f"finetune {fraction}": each for fraction, each in self.finetune.items()}
        return {name: each for name, each in stages.items() if each is not None}

    def plain(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {"start": self.start, **{name: each.model_dump(mode="json") for name, each in self.named().items()}}

    def changes(self, before: dict[str, Any]) -> list[tuple[str, Any, Any]]:
        """Settings that decide results and differ from those of an earlier `plain`: dotted name, value then, value now.

        Settings that were added to the package since have their defaults.

        Raises:
            ValueError: if these are no recipes of this version.
        """
        now, found = self.named(), list[tuple[str, Any, Any]]()
        if before["start"] != self.start:
            found.append(("start", before["start"], self.start))
        for name in dict.fromkeys([*before, *now]):
            if name in now and name in before:
                then = type(now[name]).model_validate(before[name])
                changed = [d for d in differences(then, now[name]) if not d[0].startswith(DECIDES_NOTHING)]
                found += [(f"{name}.{path}", old, new) for path, old, new in changed]
            elif name != "start":
                then, today = ("asked for" if name in each else "not asked for" for each in (before, now))
                found.append((name, then, today))
        return found


def units_of(recipe: GapRecipe) -> list[Unit]:
    """All units of a study, seed by seed, so that an interrupted study can already be read."""
    study = recipe.study
    found: list[Unit] = []
    controls = CONTROLS if study.controls else ()
    pretrained = [arm for arm in study.axis_arms if study.arm(arm).objective is not None]
    for swapped in (False, True) if study.both_ways else (False,):
        for seed in study.seeds:  # controls too: the seed decides which labelled images there are, and the shots
            found += [Unit(arm, seed, Variant(swapped)) for arm in (*controls, *study.arms)]
            found += [Unit(arm, seed, Variant(swapped, images)) for images in study.images for arm in pretrained]
            for size, other in study.sizes.items():
                found += [Unit(arm, seed, Variant(swapped, None, size)) for arm in (other.arms or study.axis_arms)]
    return list(dict.fromkeys(found))


def unit_named(recipe: GapRecipe, name: str) -> Unit:
    """The unit of this name.

    Raises:
        SettingError: if the study has no such unit.
    """
    known = {str(unit): unit for unit in units_of(recipe)}
    if name not in known:
        raise recipe.study.error(only=f"there is no unit {name!r}; this study has {', '.join(known)}")
    return known[name]


def data_of(recipe: GapRecipe, *, swapped: bool) -> tuple[DataSettings, DataSettings]:
    """The upstream and the downstream images of a direction."""
    return (recipe.downstream, recipe.upstream) if swapped else (recipe.upstream, recipe.downstream)


def recipes_of(recipe: GapRecipe, unit: Unit) -> Recipes:
    """The recipes of a unit, in its folder."""
    arm, (swapped, images, size) = recipe.study.arm(unit.arm), unit.variant
    upstream, downstream = data_of(recipe, swapped=swapped)
    encoder = _other(recipe.encoder, recipe.study.sizes[size]) if size else recipe.encoder
    start = encoder if arm.start == "random" else _changed(encoder, source=arm.start)
    pretrain = evaluate = None
    if arm.objective is not None:
        data = _changed(upstream, images=images) if images else upstream
        pretrain = _pretrain(recipe, unit, start, data, arm.objective)
        start = _changed(encoder, source=pretrain.output_dir)
    control = arm.role == "control"
    if control and encoder.patch_size is None:  # the size of the patches whose colours are the control
        layout = encoder.architecture(downstream.image_size).layout
        start = _changed(start, patch_size=layout.patch_size if layout is not None else None)
    if arm.role != "scratch":
        evaluate = _evaluate(recipe, unit, start, downstream, control=control)
    fractions = () if control else recipe.finetuning.fractions
    finetune = {f"{fraction:g}": _finetune(recipe, unit, start, downstream, fraction) for fraction in fractions}
    return Recipes(arm.start, pretrain, evaluate, finetune)


def _folder(recipe: GapRecipe, unit: Unit, name: str) -> str:
    return str(Path(recipe.output_dir) / str(unit) / name)


def _pretrain(
    recipe: GapRecipe, unit: Unit, start: EncoderSettings, data: DataSettings, objective: ObjectiveSettings
) -> PretrainRecipe:
    part, arm = recipe.pretraining, recipe.study.arm(unit.arm)
    sections = {**dict(part), "optimizer": arm.optimizer_of(part.optimizer)}
    return PretrainRecipe(
        command="pretrain",
        seed=unit.seed,
        output_dir=_folder(recipe, unit, "pretrain"),
        data=data,
        encoder=start,
        objective=objective,
        reconstructions=ReconstructionSettings(every=Duration(steps=0)),
        **{name: scaled(section, recipe.study.scale) for name, section in sections.items()},
    )


def _evaluate(
    recipe: GapRecipe, unit: Unit, start: EncoderSettings, data: DataSettings, *, control: bool
) -> EvaluateRecipe:
    part, training = recipe.evaluation, recipe.pretraining.training
    sections = {**dict(part), "labels": _changed(part.labels, seed=unit.seed)}
    if part.few_shot is not None:  # draws that no other seed of the study has
        draws = tuple(DRAWS * unit.seed + draw for draw in part.few_shot.seeds)
        sections["few_shot"] = _changed(part.few_shot, seeds=draws)
    if control:
        sections["features"] = FeatureSettings()
    return EvaluateRecipe(
        command="evaluate",
        seed=unit.seed,
        output_dir=_folder(recipe, unit, "evaluation"),
        data=_downstream(data),
        encoder=start,
        controls=False,  # they are arms
        compute=ComputeSettings(**{name: getattr(training, name) for name in ComputeSettings.model_fields}),
        **sections,
    )


def _finetune(
    recipe: GapRecipe, unit: Unit, start: EncoderSettings, data: DataSettings, fraction: float
) -> FinetuneRecipe:
    part = recipe.finetuning
    sections = {name: section for name, section in part if name in FinetuneRecipe.model_fields}
    if recipe.study.arm(unit.arm).budget == "total":
        before = scaled(recipe.pretraining.training, recipe.study.scale)
        sections["training"] = _changed(part.training, duration=_together(part.training, before))
    dev = part.dev if part.search.is_asked_for else 0.0  # nothing else is chosen: train on all labelled images
    return FinetuneRecipe(
        command="finetune",
        seed=unit.seed,
        output_dir=_folder(recipe, unit, f"finetune-{fraction:g}"),
        data=_downstream(data),
        labels=LabelSettings(fraction=fraction, dev=dev, seed=unit.seed),
        encoder=_changed(start, drop_path=part.drop_path),
        **sections,
    )


def scaled(settings: Any, factor: float) -> Any:
    """Settings with all their durations times a factor."""
    return _changed(settings, **{n: d.scaled(factor) for n, d in settings if isinstance(d, Duration)})


def _together(*parts: TrainingSettings) -> Duration:
    """As many images as pre-training and fine-tuning see together; neither is given in epochs."""
    steps = [part.duration.in_steps(batch_size=part.batch_size, rows=1) for part in parts]
    return Duration(images=sum(count * part.batch_size for count, part in zip(steps, parts, strict=True)))


def _other(encoder: EncoderSettings, other: OtherEncoder) -> EncoderSettings:
    """The study's encoder in another size, or another network."""
    if other.name is not None:
        own = {"name": other.name, "patch_size": other.patch_size, "arguments": other.arguments}
    else:
        arguments = {**encoder.arguments, **other.arguments}
        own = {"patch_size": other.patch_size or encoder.patch_size, "arguments": arguments}
    return _changed(encoder, pool=other.pool or encoder.pool, **own).at(other.location)


def _downstream(data: DataSettings) -> NetworkSizeSettings:
    """The same settings for the commands that may take the network's own size."""
    return NetworkSizeSettings(**dict(data)).at(data.location)


def _changed(settings: Any, **changes: Any) -> Any:
    return settings.model_copy(update=changes)

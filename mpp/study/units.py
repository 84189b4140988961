"""The units of a study (an arm with a seed, in one variant), and the recipes that each unit runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mpp.data.settings import DataSettings, LabelSettings
from mpp.encoder.settings import EncoderSettings
from mpp.evaluation.settings import CONTROLS, FeatureSettings, FewShotSettings
from mpp.recipe import EvaluateRecipe, FinetuneRecipe, GapRecipe, PretrainRecipe, differences
from mpp.settings import Duration, Settings
from mpp.study.settings import OtherEncoder
from mpp.training.settings import ComputeSettings, ReconstructionSettings

DECIDES_NOTHING = ("output_dir", "encoder.source", "data.workers", "data.cache", "training.micro_batch_size",
                   "training.compile", "features.batch_size", "journal.", "checkpoint.", "hub.")  # fmt: skip
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
    """By the share of the labels."""

    def named(self) -> dict[str, Settings]:
        """Each recipe by what it is for."""
        stages: dict[str, Settings | None] = {"pretrain": self.pretrain, "evaluate": self.evaluate}
        stages |= {f"finetune {fraction}": each for fraction, each in self.finetune.items()}
        return {name: each for name, each in stages.items() if each is not None}

    def plain(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {"start": self.start, **{name: each.model_dump(mode="json") for name, each in self.named().items()}}

    def changes(self, before: dict[str, Any]) -> list[tuple[str, Any, Any]]:
        """Settings that decide results and have changed: dotted name, value then, value now.

        Settings that were added to the package since have their defaults.

        Args:
            before: what `plain` gave then.

        Raises:
            ValueError: if these are no recipes of this version.
        """
        now, found = self.named(), []
        if before["start"] != self.start:
            found.append(("start", before["start"], self.start))
        for name in dict.fromkeys([*before, *now]):
            if name == "start":
                continue
            if name not in before or name not in now:
                found.append((name, *("asked for" if name in each else "not asked for" for each in (before, now))))
                continue
            then = type(now[name]).model_validate(before[name])
            changed = (d for d in differences(then, now[name]) if not d[0].startswith(DECIDES_NOTHING))
            found += [(f"{name}.{path}", old, new) for path, old, new in changed]
        return found


def units_of(recipe: GapRecipe) -> list[Unit]:
    """All units of a study, seed by seed, so that an interrupted study can already be read."""
    study = recipe.study
    found: list[Unit] = []
    for swapped in (False, True) if study.both_ways else (False,):
        for seed in study.seeds:  # controls too: the seed decides which labelled images there are, and the shots
            found += [Unit(arm, seed, Variant(swapped)) for arm in (*(CONTROLS if study.controls else ()), *study.arms)]
            pretrained = [arm for arm in study.axis_arms if study.arm(arm).objective is not None]
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


def recipes_of(recipe: GapRecipe, unit: Unit) -> Recipes:
    """The recipes of a unit, in its folder."""
    folder = Path(recipe.output_dir) / str(unit)
    arm, (swapped, images, size) = recipe.study.arm(unit.arm), unit.variant
    upstream, downstream = recipe.upstream, recipe.downstream
    if swapped:
        upstream, downstream = downstream, upstream
    encoder = _other(recipe.encoder, recipe.study.sizes[size]) if size else recipe.encoder
    start = encoder if arm.start == "random" else _changed(encoder, source=arm.start)
    pretrain = None
    if arm.objective is not None:
        part, scale = recipe.pretraining, recipe.study.scale
        scaled_parts = {n: scaled(getattr(part, n), scale) for n in ("training", "validation", "checkpoint")}
        pretrain = PretrainRecipe(
            command="pretrain",
            seed=unit.seed,
            output_dir=str(folder / "pretrain"),
            data=_changed(upstream, images=images) if images else upstream,
            encoder=start,
            objective=arm.objective,
            optimizer=scaled(arm.optimizer_of(part.optimizer), scale),
            evaluation=scaled(part.evaluation, scale),
            **scaled_parts,
            reconstructions=ReconstructionSettings(every=Duration(steps=0)),
        )
        start = _changed(encoder, source=str(folder / "pretrain"))
    control = arm.role == "control"
    if control:
        start = _changed(start, patch_size=_patch_size(encoder, downstream.image_size))
    evaluate = None
    if arm.role != "scratch":
        part = recipe.evaluation
        evaluate = EvaluateRecipe(
            command="evaluate",
            seed=unit.seed,
            output_dir=str(folder / "evaluation"),
            data=downstream,
            labels=_changed(part.labels, seed=unit.seed),
            encoder=start,
            features=FeatureSettings() if control else part.features,
            few_shot=_draws(part.few_shot, unit.seed),
            knn=part.knn,
            linear_probe=part.linear_probe,
            by_depth=part.by_depth,
            compute=_compute(recipe),
        )
    fractions = () if control else recipe.finetuning.fractions
    finetune = {f"{fraction:g}": _finetune(recipe, unit, start, downstream, fraction) for fraction in fractions}
    return Recipes(arm.start, pretrain, evaluate, finetune)


def _finetune(
    recipe: GapRecipe, unit: Unit, start: EncoderSettings, downstream: DataSettings, fraction: float
) -> FinetuneRecipe:
    part = recipe.finetuning
    training = part.training
    if recipe.study.arm(unit.arm).budget == "total":
        before = scaled(recipe.pretraining.training, recipe.study.scale)
        training = _changed(training, duration=_together(training, before))
    dev = part.dev if part.search.is_asked_for else 0.0  # nothing else is chosen: train on all labelled images
    return FinetuneRecipe(
        command="finetune",
        seed=unit.seed,
        output_dir=str(Path(recipe.output_dir) / str(unit) / f"finetune-{fraction:g}"),
        data=downstream,
        labels=LabelSettings(fraction=fraction, dev=dev, seed=unit.seed),
        encoder=_changed(start, drop_path=part.drop_path),
        objective=part.objective,
        augmentation=part.augmentation,
        training=training,
        search=part.search,
        optimizer=part.optimizer,
        validation=part.validation,
        checkpoint=part.checkpoint,
    )


def _draws(settings: FewShotSettings | None, seed: int) -> FewShotSettings | None:
    """The few-shot draws of one seed of the study, which no other seed has."""
    return settings and _changed(settings, seeds=tuple(DRAWS * seed + draw for draw in settings.seeds))


def _patch_size(encoder: EncoderSettings, image_size: int) -> int | None:
    """Of the patches whose colours are the control; None for a network that has none."""
    if encoder.patch_size is not None:
        return encoder.patch_size
    layout = encoder.architecture(image_size).layout
    return layout.patch_size if layout is not None else None


def _compute(recipe: GapRecipe) -> ComputeSettings:
    training = recipe.pretraining.training
    return ComputeSettings(precision=training.precision, threads=training.threads, deterministic=training.deterministic)


def scaled(settings: Any, factor: float) -> Any:
    """Settings with all their durations times a factor."""
    durations = {name: getattr(settings, name) for name in type(settings).model_fields}
    return _changed(settings, **{n: d.scaled(factor) for n, d in durations.items() if isinstance(d, Duration)})


def _together(finetuning: Any, pretraining: Any) -> Duration:
    """As many images as pre-training and fine-tuning see together; neither is given in epochs."""
    images = 0
    for part in (finetuning, pretraining):
        images += part.duration.in_steps(batch_size=part.batch_size, rows=1) * part.batch_size
    return Duration(images=images)


def _other(encoder: EncoderSettings, other: OtherEncoder) -> EncoderSettings:
    """The study's encoder in another size, or another network in its place."""
    pool = other.pool or encoder.pool
    if other.name is not None:
        own = {"name": other.name, "patch_size": other.patch_size, "arguments": other.arguments}
    else:
        arguments = {**encoder.arguments, **other.arguments}
        own = {"patch_size": other.patch_size or encoder.patch_size, "arguments": arguments}
    return _changed(encoder, pool=pool, **own).at(other.location)


def _changed(settings: Any, **changes: Any) -> Any:
    assert isinstance(settings, Settings)
    return settings.model_copy(update=changes)

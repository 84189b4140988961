"""The recipes that each unit of a study runs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpp.data.settings import DataSettings, LabelSettings, NetworkSizeSettings
from mpp.encoder.settings import EncoderSettings
from mpp.evaluation.settings import FeatureSettings
from mpp.objective.settings import ObjectiveSettings
from mpp.recipe import EvaluateRecipe, FinetuneRecipe, GapRecipe, PretrainRecipe, differences, same_data
from mpp.settings import Duration
from mpp.study.settings import OtherEncoder
from mpp.study.units import Tuning, Unit
from mpp.training.settings import ComputeSettings, ReconstructionSettings, TrainingSettings

DECIDES_NOTHING = ("output_dir", "encoder.source", "data.workers", "data.cache", "training.micro_batch_size",
                   "training.compile", "features.batch_size", "controls", "journal.", "checkpoint.",
                   "hub.")  # fmt: skip
"""Settings that may differ between a study and its resumption."""
DRAWS = 1000
"""Seeds of few-shot draws that each seed of a study has: seed s draws with 1000·s + r."""


@dataclass(frozen=True)
class Recipes:
    """What a unit runs, in this order; None for what its arm leaves out."""

    start: str
    """Of the arm."""
    pretrain: PretrainRecipe | None
    evaluate: EvaluateRecipe | None
    finetune: dict[Tuning, FinetuneRecipe]
    """By what is tried; without a pilot by the fraction of the labels alone."""

    def named(self) -> dict[str, PretrainRecipe | EvaluateRecipe | FinetuneRecipe]:
        """Each recipe by what it is for."""
        stages: dict[str, Any] = {"pretrain": self.pretrain, "evaluate": self.evaluate}
        stages |= {tuning.folder.replace("-", " ", 1): each for tuning, each in self.finetune.items()}
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


def data_of(recipe: GapRecipe, *, swapped: bool) -> tuple[DataSettings, DataSettings]:
    """The upstream and the downstream images of a direction."""
    upstream, downstream = recipe.upstream, recipe.downstream
    if recipe.study.pilot is not None:
        downstream = _changed(downstream, reserved=recipe.study.pilot.reserved)
        if same_data(upstream, downstream) and upstream.split == downstream.split:  # nothing pre-trains on them either
            upstream = _changed(upstream, reserved=recipe.study.pilot.reserved)
    return (downstream, upstream) if swapped else (upstream, downstream)


def recipes_of(recipe: GapRecipe, unit: Unit) -> Recipes:
    """The recipes of a unit, in its folder."""
    arm, variant = recipe.study.arm(unit.arm), unit.variant
    upstream, downstream = data_of(recipe, swapped=variant.swapped)
    if unit.trial is not None:
        downstream = _changed(downstream, evaluate_on="reserved")
    encoder = _other(recipe.encoder, recipe.study.sizes[variant.size]) if variant.size else recipe.encoder
    start = encoder if arm.start == "random" else _changed(encoder, source=arm.start)
    pretrain = evaluate = None
    if arm.objective is not None:
        pretrain = _pretrain(recipe, unit, start, upstream, arm.objective)
        start = _changed(encoder, source=pretrain.output_dir)
    control = arm.role == "control"
    if control and encoder.patch_size is None:  # the size of the patches whose colours are the control
        layout = encoder.architecture(downstream.image_size).layout
        start = _changed(start, patch_size=layout.patch_size if layout is not None else None)
    if arm.role != "scratch" and (unit.trial is None or not recipe.finetuning.fractions):
        evaluate = _evaluate(recipe, unit, start, downstream, control=control)
    tunings = () if control else _tunings(recipe, unit)
    finetune = {tuning: _finetune(recipe, unit, start, downstream, tuning) for tuning in tunings}
    return Recipes(arm.start, pretrain, evaluate, finetune)


def _tunings(recipe: GapRecipe, unit: Unit) -> list[Tuning]:
    """The fine-tunings of a unit: one for each share of the labels, in the pilot a grid for each."""
    fractions, pilot = recipe.finetuning.fractions, recipe.study.pilot
    if unit.trial is None or pilot is None:
        return [Tuning(fraction) for fraction in fractions]
    grid = itertools.product(fractions, pilot.pools or (None,), pilot.finetuning_lr or (None,))
    return [Tuning(fraction, lr, pool) for fraction, pool, lr in grid]


def _folder(recipe: GapRecipe, unit: Unit, name: str) -> str:
    return str(Path(recipe.output_dir) / str(unit) / name)


def _pretrain(
    recipe: GapRecipe, unit: Unit, start: EncoderSettings, data: DataSettings, objective: ObjectiveSettings
) -> PretrainRecipe:
    part, study, variant = recipe.pretraining, recipe.study, unit.variant
    optimizer = study.arm(unit.arm).optimizer_of(part.optimizer)
    chosen = study.choices.get(unit.arm)
    if rate := unit.trial.lr if unit.trial is not None else chosen.lr if chosen is not None else None:
        optimizer = _changed(optimizer, lr=rate)
    if variant.corruption is not None:
        corruption = dict(objective)["corruption"]
        objective = _changed(objective, corruption=_changed(corruption, fraction=variant.corruption))
    if variant.target is not None:
        objective = _changed(objective, target=study.targets[variant.target])
    sections = {**dict(part), "optimizer": optimizer}
    factor = _length(recipe, unit)
    return PretrainRecipe(
        command="pretrain",
        seed=unit.seed,
        output_dir=_folder(recipe, unit, "pretrain"),
        data=_changed(data, images=variant.images) if variant.images else data,
        encoder=start,
        objective=objective,
        reconstructions=ReconstructionSettings(every=Duration(steps=0)),
        **{name: scaled(section, factor) for name, section in sections.items()},
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
    recipe: GapRecipe, unit: Unit, start: EncoderSettings, data: DataSettings, tuning: Tuning
) -> FinetuneRecipe:
    part, study = recipe.finetuning, recipe.study
    sections = {name: section for name, section in part if name in FinetuneRecipe.model_fields}
    if study.arm(unit.arm).budget == "total":
        before = scaled(recipe.pretraining.training, _length(recipe, unit))
        sections["training"] = _changed(part.training, duration=_together(part.training, before))
    chosen = study.choices[unit.arm].finetuning if unit.trial is None and unit.arm in study.choices else {}
    own = chosen.get(f"{tuning.fraction:g}")
    lr, pool = (tuning.lr, tuning.pool) if own is None else (own.lr, own.pool)
    if lr is not None:
        sections["optimizer"] = _changed(part.optimizer, lr=lr)
    chooses = part.search.is_asked_for or part.early_stopping.patience
    return FinetuneRecipe(
        command="finetune",
        seed=unit.seed,
        output_dir=_folder(recipe, unit, tuning.folder),
        data=_downstream(data),
        # Where nothing else is chosen, all labelled images are trained on.
        labels=LabelSettings(fraction=tuning.fraction, dev=part.dev if chooses else 0.0, seed=unit.seed),
        encoder=_changed(start, drop_path=part.drop_path, **({} if pool is None else {"pool": pool})),
        **sections,
    )


def _length(recipe: GapRecipe, unit: Unit) -> float:
    """The length of a unit's pre-training in multiples of the recipe's."""
    study = recipe.study
    of_pilot = study.pilot.length if unit.trial is not None and study.pilot is not None else 1.0
    return study.scale * of_pilot * (unit.variant.length or 1)


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

"""The units of a gap study: an arm with a seed, in one of its variants; and the recipes that each of them runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mpp.data.settings import LabelSettings
from mpp.encoder.create import build_backbone
from mpp.encoder.encoder import Encoder
from mpp.encoder.settings import EncoderSettings
from mpp.evaluation.controls import CONTROLS
from mpp.evaluation.settings import FeatureSettings
from mpp.objective.corruption import Corruption
from mpp.objective.settings import MaskedPatchSettings, SupervisedSettings
from mpp.objective.targets import DownsizedPatch, FullPatch, MeanColor
from mpp.recipe import EvaluateRecipe, FinetuneRecipe, GapRecipe, PretrainRecipe, differences
from mpp.settings import Duration, Settings
from mpp.study.settings import OtherEncoder
from mpp.training.settings import ComputeSettings, ReconstructionSettings

OBJECTIVES: dict[str, Any] = {
    "mean_color": MaskedPatchSettings(target=MeanColor()),
    "downsized": MaskedPatchSettings(target=DownsizedPatch()),
    "full_patch": MaskedPatchSettings(target=FullPatch()),
    "mean_color_15": MaskedPatchSettings(target=MeanColor(), corruption=Corruption(fraction=0.15)),
    "supervised": SupervisedSettings(),
}
"""The arms that pre-train, and how."""
DECIDES_NOTHING = ("output_dir", "encoder.source", "data.workers", "data.cache", "training.micro_batch_size",
                   "training.compile", "features.batch_size", "journal.", "checkpoint.", "hub.")  # fmt: skip
"""Settings that may differ between a study and its resumption."""


class Unit(NamedTuple):
    """What one process does: pre-train (if the arm does), measure frozen features, fine-tune."""

    arm: str
    seed: int
    back: bool = False
    """Upstream and downstream are exchanged."""
    images: int | None = None
    size: str | None = None

    @property
    def variant(self) -> str:
        """Where it departs from the study's own settings, as a folder name; empty if it does not."""
        parts = ["back"] if self.back else []
        parts += [f"images-{self.images}"] if self.images else []
        return "/".join([*parts, *([f"size-{self.size}"] if self.size else [])])

    def __str__(self) -> str:
        return "/".join(filter(None, (self.variant, self.arm, f"seed-{self.seed}")))


@dataclass(frozen=True)
class Recipes:
    """What a unit runs, in this order; None for what its arm leaves out."""

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
        """All of them as JSON."""
        return {name: each.model_dump(mode="json") for name, each in self.named().items()}

    def changes(self, before: dict[str, Any]) -> list[tuple[str, Any, Any]]:
        """What decides results and is not as it was: dotted name, value then, value now.

        Recipes of an earlier version are read as its settings meant: what has been added since has its default.

        Args:
            before: what `plain` gave then.

        Raises:
            ValueError: if these are no recipes of this version.
        """
        now, found = self.named(), []
        for name in dict.fromkeys([*before, *now]):
            if name not in before or name not in now:
                found.append((name, *("asked for" if name in each else "not asked for" for each in (before, now))))
                continue
            then = type(now[name]).model_validate(before[name])
            changed = (d for d in differences(then, now[name]) if not d[0].startswith(DECIDES_NOTHING))
            found += [(f"{name}.{path}", old, new) for path, old, new in changed]
        return found


def units_of(recipe: GapRecipe) -> list[Unit]:
    """Everything that a study has to run, seed by seed, so that a study that is cut off can already be read."""
    study = recipe.study
    found: list[Unit] = []
    for back in (False, True) if study.both_ways else (False,):
        for seed in study.seeds:  # of the controls too: it decides which labelled images there are
            found += [Unit(control, seed, back) for control in CONTROLS] if study.controls else []
            found += [Unit(arm, seed, back) for arm in study.arms]
            pretrained = [arm for arm in study.axis_arms if arm in OBJECTIVES]
            found += [Unit(arm, seed, back, images) for images in study.images for arm in pretrained]
            for size, other in study.sizes.items():
                found += [Unit(arm, seed, back, None, size) for arm in (other.arms or study.axis_arms)]
    return found


def unit_named(recipe: GapRecipe, name: str) -> Unit:
    """The unit that is written like this.

    Raises:
        ValueError: if the study has no such unit.
    """
    known = {str(unit): unit for unit in units_of(recipe)}
    if name not in known:
        raise ValueError(f"study.only {name!r} is none of the study's: {', '.join(known)}")
    return known[name]


def recipes_of(recipe: GapRecipe, unit: Unit) -> Recipes:
    """The recipes of a unit, in its folder."""
    folder = Path(recipe.output_dir) / str(unit)
    scale = recipe.study.scale
    upstream, downstream = recipe.upstream, recipe.downstream
    if unit.back:
        upstream, downstream = downstream, upstream
    encoder = recipe.encoder
    if unit.size:
        encoder = _other(encoder, recipe.study.sizes[unit.size])
    start: Any = encoder
    pretrain = None
    if unit.arm in OBJECTIVES:
        if unit.images:
            upstream = _changed(upstream, images=unit.images)
        part = recipe.pretraining
        pretrain = PretrainRecipe(
            command="pretrain",
            seed=unit.seed,
            output_dir=str(folder / "pretrain"),
            data=upstream,
            encoder=encoder,
            objective=OBJECTIVES[unit.arm],
            training=scaled(part.training, scale),
            evaluation=scaled(part.evaluation, scale),
            **_scaled_parts(part, scale),
            reconstructions=ReconstructionSettings(every=Duration(steps=0)),
        )
        start = _changed(encoder, source=str(folder / "pretrain"))
    if unit.arm in CONTROLS:
        start = _changed(encoder, source=unit.arm, patch_size=_patch_size(encoder, downstream.image_size))
    evaluate = None
    if unit.arm != "scratch":
        part = recipe.evaluation
        evaluate = EvaluateRecipe(
            command="evaluate",
            seed=unit.seed,
            output_dir=str(folder / "evaluation"),
            data=downstream,
            labels=_changed(part.labels, seed=unit.seed),
            encoder=start,
            features=part.features if unit.arm not in CONTROLS else FeatureSettings(),
            few_shot=part.few_shot,
            knn=part.knn,
            linear_probe=part.linear_probe,
            by_depth=part.by_depth,
            compute=_compute(recipe),
        )
    finetune: dict[str, FinetuneRecipe] = {}
    for fraction in recipe.finetuning.fractions if unit.arm not in CONTROLS else ():
        part = recipe.finetuning
        training = scaled(part.training, scale)
        if unit.arm == "scratch":  # it sees as many images as the others do in both trainings
            longer = scaled(recipe.pretraining.training, scale)
            training = _changed(training, duration=_together(training, longer))
        finetune[f"{fraction:g}"] = FinetuneRecipe(
            command="finetune",
            seed=unit.seed,
            output_dir=str(folder / f"finetune-{fraction:g}"),
            data=downstream,
            labels=LabelSettings(fraction=fraction, dev=part.dev, seed=unit.seed),  # other images for every seed
            encoder=_changed(start, drop_path=part.drop_path),
            objective=part.objective,
            augmentation=part.augmentation,
            training=training,
            search=part.search,
            **_scaled_parts(part, scale),
        )
    return Recipes(pretrain, evaluate, finetune)


def _patch_size(encoder: EncoderSettings, image_size: int) -> int | None:
    """Of the patches whose colours are the control; None for a network that has none."""
    if encoder.patch_size is not None:
        return encoder.patch_size
    with torch.device("meta"):  # where weights take no memory
        network = build_backbone(encoder, image_size)
    return network.patch_size if isinstance(network, Encoder) else None


def _compute(recipe: GapRecipe) -> ComputeSettings:
    training = recipe.pretraining.training
    return ComputeSettings(precision=training.precision, threads=training.threads, deterministic=training.deterministic)


def scaled(settings: Any, factor: float) -> Any:
    """Settings with all their durations times a factor."""
    durations = {name: getattr(settings, name) for name in type(settings).model_fields}
    return _changed(settings, **{n: d.scaled(factor) for n, d in durations.items() if isinstance(d, Duration)})


def _scaled_parts(part: Any, factor: float) -> dict[str, Any]:
    """What pre-training and fine-tuning have alike besides the training itself."""
    return {name: scaled(getattr(part, name), factor) for name in ("optimizer", "validation", "checkpoint")}


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

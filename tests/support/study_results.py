"""Made-up results of a study, in the form in which `results.json` has them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from mpp.evaluation.predictions import LABELS, Predictions
from mpp.recipe import GapRecipe
from mpp.study.arms import PRESETS
from mpp.study.claims import answer_of, claims_of, note_of
from mpp.study.pilot import Tried
from mpp.study.results import Evidence, Row, downstream
from mpp.study.units import Unit

LEVEL = {"random": 0.2, "scratch": 0.3, "mean_color": 0.4, "full_patch": 0.25, "supervised": 0.35, "raw_pixels": 0.15}


def row(arm: str, seed: int, evaluator: str, value: float, setting: float | None = None, **more: Any) -> Row:
    """A row; without a metric, of accuracy."""
    return Row(arm, seed, evaluator=evaluator, setting=setting, value=value)._replace(**more)


def unit(arm: str, seed: int, **variant: Any) -> list[Row]:
    """All rows of a unit, with numbers that differ everywhere."""
    rows: list[Row] = []

    def add(evaluator: str, value: float, setting: float | None = None, **more: Any) -> None:
        rows.append(row(arm, seed, evaluator, value, setting, **variant, **more))

    level = LEVEL[arm] + 0.01 * math.sin(7 * seed + len(arm)) - (0.05 if variant.get("images") else 0)
    if PRESETS[arm].objective is not None:
        masked = PRESETS[arm].role == "self-supervised"
        length = variant.get("length") or 1
        numbers = {"images_seen": 192 * length, "flops_per_image": 2e8 if variant.get("size") else 1e8,
                   "flops": 192e8 * length, "core_seconds": 30 + seed, "rows": variant.get("images") or 500,
                   "baseline_histogram": 4.2}  # fmt: skip
        numbers |= {"baseline_neighbours": 3.2} if masked else {}
        for name, value in numbers.items():
            add("pretrain", value, metric=name)
        for step in (1, 2, 3):
            more = {"samples": 64 * step, "metric": "upstream_accuracy"}
            add(
                "pretrain",
                4 - 0.1 * step + 0.01 * seed,
                samples=64 * step,
                metric="validation_loss_mask" if masked else "validation_loss",
            )
            if not masked:
                add("pretrain", 0.5, samples=64 * step, metric="validation_accuracy")
            add("few_shot", level * step / 4, 5, pool="avg", **more)
            add("knn", level * step / 3, 20, pool="token", **more)
    if PRESETS[arm].role != "scratch":
        for name, value in {"classes": 4, "train_images": 90, "test_images": 50}.items():
            add("evaluate", value, metric=name)
        for layer, block, pool, gain in (("chosen", 1, "avg", 0.02), ("default", 2, "token", 0.0)):
            where = {"layer": layer, "block": block, "pool": pool}
            for shots in (1, 5):
                add("few_shot", level + gain + 0.01 * shots, shots, **where)
            for k in (20, 10):
                add("knn", level + gain - 0.001 * k, k, **where)
            add("linear_probe", level + gain + 0.03, **where)
            numbers = {"c": 0.1 * 10**seed, "at_grid_end": float(seed == 2), "converged": float(seed != 1)}
            for name, value in numbers.items():
                add("linear_probe", value, metric=name, **where)
        for block in (1, 2) if PRESETS[arm].role != "control" else ():
            for pool in ("token", "avg"):
                add("knn", level + 0.01 * block, metric="dev_accuracy", block=block, pool=pool)
    if PRESETS[arm].role != "control":
        for name, value in {"accuracy": level + 0.1, "images_seen": 640, "flops": 6.4e10, "core_seconds": 12}.items():
            add("finetune", value, 0.1, metric=name)
        for name, value in {"images_seen": 1280, "flops": 1.28e11, "core_seconds": 25}.items():
            add("search", value, 0.1, metric=name)
        for step in (5, 10):
            add("finetune", level * step / 10, 0.1, metric="dev_accuracy", samples=64 * step)
    return rows


def about(rows: Iterable[Row]) -> dict[str, dict[str, str]]:
    """Titles and roles of the presets that have rows, in the order of the presets."""
    names = {each.arm for each in rows}
    return {name: {"title": arm.title, "role": arm.role} for name, arm in PRESETS.items() if name in names}


IMAGES = 1000
"""Made-up test images, of which as many are right as an accuracy of three decimals says."""


def evidence(rows: Iterable[Row]) -> Evidence:
    """Predictions whose accuracies are those of the rows; which images are right differs by arm and seed."""
    found: dict[Unit, Predictions] = {}
    for number, each in enumerate(downstream(rows)):
        own = found.setdefault(Unit(each.arm, each.seed, each.variant), {LABELS: torch.zeros(IMAGES)})
        wrong = torch.arange(IMAGES) >= round(IMAGES * each.value)
        own[each.measure.key] = wrong.roll(37 * (number % 11)).float()
    return Evidence(found)


def recipe_of(rows: Iterable[Row], **study: Any) -> GapRecipe:
    """A recipe of a study with the arms and seeds of these rows."""
    own = [each for each in rows if each.evaluator]
    arms = [name for name in about(own) if PRESETS[name].role != "control"]
    if "supervised" not in arms and {"random", "scratch"} & {*arms} and "mean_color" in arms:
        floor = "scratch" if "scratch" in arms else "random"
        study = {"primary": [{"higher": "mean_color", "lower": floor, "by": "finetune"}]} | study
    return GapRecipe.model_validate({
        "command": "gap",
        "output_dir": "runs/gap",
        "encoder": {"name": "vit_tiny_patch16_224", "patch_size": 4, "arguments": {"depth": 2}},
        "upstream": {"source": "embedded:a", "split": "train", "image_size": 32},
        "downstream": {"source": "embedded:b", "split": "train", "image_size": 32},
        "pretraining": {"training": {"duration": {"steps": 3}}},
        "evaluation": {"few_shot": {"shots": [1, 5]}, "knn": {"k": [20, 10]}},
        "finetuning": {"fractions": [0.1], "training": {"duration": {"steps": 10}}},
        "study": {"arms": arms or ["random"], "seeds": sorted({each.seed for each in own}), "axis_arms": []} | study,
    })  # fmt: skip


def tried(*arms: str) -> list[Tried]:
    """A pilot of two pre-training rates, two rates of fine-tuning and two pools; the larger rates are best."""
    found = []
    for arm in arms:
        trained = PRESETS[arm].objective is not None
        for lr in (1e-3, 3e-3) if trained else (None,):
            if trained:
                found.append(Tried(arm, "pretrain", lr, images_seen=192, flops=192e8, core_seconds=30))
            for rate in (1e-3, 3e-3, 1e-2):
                for pool in ("token", "avg"):
                    value = 0.3 + 20 * rate + 10 * (lr or 0) + 0.02 * (pool == "avg") - 4 * max(rate - 3e-3, 0) * 10
                    found.append(Tried(arm, "finetune", lr, 0.1, rate, pool, value, 640, 6.4e10, 12))
    return found


def study(rows: list[Row], settings: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """The results of a study with these rows."""
    arms, recipe = about(rows), recipe_of(rows, **settings or {})
    claims = claims_of(rows, arms, evidence(rows), recipe)
    units = dict.fromkeys((each.arm, each.seed, each.variant) for each in rows)
    return {
        "arms": arms,
        "note": note_of(claims),
        "answer": answer_of(claims, arms, rows),
        "recipe": recipe.model_dump(mode="json"),
        "units": [
            {"name": f"{arm}/seed-{seed}", "arm": arm, "seed": seed, **variant._asdict(),
             "reconstructions": f"{arm}/picture.png" if arm in ("mean_color", "full_patch") else None}
            for arm, seed, variant in units
        ],
        "claims": claims,
        "pilot_columns": list(Tried._fields),
        "pilot": [],
        "columns": list(Row._fields),
        "rows": [list(each) for each in rows],
        "unfinished": [],
        **changes,
    }  # fmt: skip

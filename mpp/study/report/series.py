"""From the outcomes of a study's units to the curves of its figures."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from mpp.study.arms import MPP
from mpp.study.claims import curve

Unit = dict[str, Any]
Curves = dict[str, list[list[tuple[float, float]]]]
"""By arm a curve for each seed."""


class Variant(NamedTuple):
    """Where units and tables depart from the study's own settings."""

    back: bool = False
    images: int | None = None
    size: str | None = None

    @classmethod
    def of_unit(cls, unit: Unit) -> Variant:
        """The variant that a unit belongs to."""
        return cls(bool(unit.get("back")), unit.get("images"), unit.get("size"))

    @classmethod
    def of_table(cls, name: str) -> Variant:
        """The variant that a table or a claim is named after, such as `back, images=500`."""
        found = re.fullmatch(r"(back)?(?:, )?(?:images=(\d+))?(?:, )?(?:size=(.*))?", name, re.DOTALL)
        assert found is not None, name
        return cls(found[1] is not None, int(found[2]) if found[2] else None, found[3])


def by_arm(units: Iterable[Unit], titles: Iterable[str], points: Callable[[Unit], list[tuple[float, float]]]) -> Curves:
    """The points of every unit, arm by arm in the order of the titles; units without points are left out."""
    found: Curves = {}
    for unit in units:
        if run := points(unit):
            found.setdefault(unit["arm"], []).append(run)
    known = list(titles)
    return dict(sorted(found.items(), key=lambda item: known.index(item[0]) if item[0] in known else len(known)))


def looks(unit: Unit, name: str, *, compute: bool = False, factor: float = 1.0) -> list[tuple[float, float]]:
    """What was looked at during pre-training, against images seen, or against floating-point operations."""
    pretraining = unit.get("pretraining")
    if not pretraining:
        return []
    cost = (pretraining.get("flops_per_image") or math.nan) if compute else 1.0
    return [(x, factor * y) for x, y in curve(unit, name, lambda look: cost * look["samples"])]


def look_names(units: Iterable[Unit]) -> list[str]:
    """Every `evaluation/…` of the curves, evaluator by evaluator in the order in which these appear."""
    every = [name for unit in units for look in (unit.get("pretraining") or {}).get("curve", []) for name in look]
    names = list(dict.fromkeys(name for name in every if name.startswith("evaluation/")))
    kinds = list(dict.fromkeys(look_kind(name) for name in names))
    return sorted(names, key=lambda name: kinds.index(look_kind(name)))


def look_title(name: str) -> str:
    """`evaluation/few_shot_5_avg` → `5-shot, mean of patches`; what is not known keeps its name."""
    found = re.fullmatch(r"evaluation/(few_shot|knn)_(\d+)_(\w+)", name)
    if found is None:
        return name.removeprefix("evaluation/")
    what = f"{found[2]}-shot" if found[1] == "few_shot" else f"kNN, k = {found[2]}"
    return f"{what}, {pool_title(found[3])}"


def look_kind(name: str) -> tuple[str, str]:
    """`evaluation/few_shot_5_avg` → `few_shot`, `5`; what is not known is a kind of its own."""
    found = re.fullmatch(r"evaluation/(few_shot|knn)_(\d+)_(\w+)", name)
    return (found[1], found[2]) if found else (name, "")


def pool_title(pool: str) -> str:
    """A pool in words."""
    return {"token": "class token", "avg": "mean of patches", "both": "token and mean"}.get(pool, pool)


def loss_name(arm: str, units: Sequence[Unit]) -> str:
    """The held-out loss to show: of masked patches alone where it is known, since kept patches leak their answer."""
    masked = "validation/loss_mask"
    known = any(looks(unit, masked) for unit in units)
    return masked if arm in MPP and known else "validation/loss"


def baselines(units: Sequence[Unit], arm: str) -> dict[str, float | None]:
    """What a model must beat, by the name that a figure gives it: means over the seeds."""
    found = [(unit.get("pretraining") or {}).get("baselines") or {} for unit in units if unit["arm"] == arm]
    names = {"histogram": "histogram", "neighbours": "visible neighbours"}
    if arm not in MPP:  # of equally frequent classes, chance and the histogram are the same line
        names = {"histogram": "label frequencies"}
    return {title: mean(values.get(name) for values in found) for name, title in names.items()}


def tuning(unit: Unit, fraction: str) -> list[tuple[float, float]]:
    """Per cent right on the dev split while a share of the labels was fine-tuned on."""
    points = unit.get("finetuning", {}).get(fraction, {}).get("curve", [])
    return [(at["samples"], 100 * at["accuracy"]) for at in points if at.get("accuracy") is not None]


def spent(unit: Unit, fraction: str, *, compute: bool) -> list[tuple[float, float]]:
    """Per cent right on the test images against all images that training took, or all its operations: one point."""
    tuned = unit.get("finetuning", {}).get(fraction)
    if not tuned:
        return []
    before = unit.get("pretraining") or {}
    images = before.get("images_seen") or 0
    x = images * (before.get("flops_per_image") or 0) + tuned["flops"] if compute else images + tuned["images_seen"]
    return [(x, 100 * tuned["test"]["accuracy"])]


def fractions(units: Iterable[Unit]) -> list[str]:
    """The shares of the labels that were fine-tuned on, ascending."""
    return sorted({fraction for unit in units for fraction in unit.get("finetuning", {})}, key=float)


def depth(unit: Unit, evaluator: str, pool: str) -> list[tuple[float, float]]:
    """Per cent right on the dev split by the block that features were taken from."""
    places = scores(unit).get(evaluator, {}).get("by_depth", [])
    return sorted((at["block"], 100 * at["accuracy"]) for at in places if at["pool"] == pool)


def depth_panels(units: Iterable[Unit]) -> list[tuple[str, str]]:
    """Every evaluator and pool that was measured at more than one block."""
    found: dict[tuple[str, str], set[int]] = {}
    for unit in units:
        for evaluator, entry in scores(unit).items():
            for at in entry.get("by_depth", []):
                found.setdefault((evaluator, at["pool"]), set()).add(at["block"])
    return [panel for panel, blocks in found.items() if len(blocks) > 1]


def scores(unit: Unit) -> dict[str, Any]:
    """The scores of frozen features by evaluator; empty for units without."""
    return (unit.get("evaluation") or {}).get("scores") or {}


def chance(units: Iterable[Unit]) -> float | None:
    """Per cent right by guessing, where the number of classes is known."""
    classes = [unit["evaluation"]["classes"] for unit in units if (unit.get("evaluation") or {}).get("classes")]
    return 100 / classes[0] if classes else None


def upstream_chance(units: Iterable[Unit]) -> float | None:
    """The same for the upstream images, from the loss of an arm that guesses their labels."""
    losses = [((unit.get("pretraining") or {}).get("baselines") or {}).get("chance") for unit in units]
    found = [100 * math.exp(-loss) for loss in losses if loss is not None]
    return found[0] if found else None


def along(places: Iterable[tuple[float, dict[str, Any], str]]) -> Curves:
    """Per cent right through several cells of tables: each its place on the x axis, its table, its metric."""
    found: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for x, table, metric in sorted(places, key=lambda place: place[0]):
        for arm, cells in table["arms"].items():
            if cell := cells.get(metric):
                for seed, accuracy in zip(cell["seeds"], cell["accuracies"], strict=True):
                    if accuracy is not None:
                        found.setdefault(arm, {}).setdefault(seed, []).append((x, 100 * accuracy))
    return {arm: list(seeds.values()) for arm, seeds in found.items()}


def numbered(table: dict[str, Any], pattern: str) -> list[tuple[float, dict[str, Any], str]]:
    """The places, for `along`, of all metrics in whose names `pattern` finds a number."""
    matches = {metric: re.fullmatch(pattern, metric) for metric in table["metrics"]}
    return [(float(match[1]), table, metric) for metric, match in matches.items() if match]


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of what is there and finite; None of nothing."""
    kept = [value for value in values if value is not None and math.isfinite(value)]
    return sum(kept) / len(kept) if kept else None

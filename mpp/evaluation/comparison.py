"""From the outcomes of a study's units to tables, paired intervals, and a sentence for each claim."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mpp.evaluation.intervals import paired

Outcome = dict[str, Any]

TITLES = {
    "random": "random start",
    "scratch": "from scratch, total budget",
    "mean_color": "MPP, mean colour",
    "downsized": "MPP, 4×4 colours",
    "full_patch": "MPP, pixels by L2",
    "mean_color_15": "MPP, mean colour, 15 % corrupted",
    "supervised": "supervised",
    "raw_pixels": "raw pixels",
    "patch_colors": "patch colours",
}
MPP = ("mean_color", "downsized", "full_patch", "mean_color_15")
"""The arms without labels."""


def summarize(units: list[Outcome]) -> dict[str, Any]:
    """Everything that a report shows.

    Args:
        units: outcomes of finished units, as their `unit.json` has them.

    Returns:
        `titles`; `units`, as they came; `tables`: for each variant, metric and arm the accuracies by seed, their mean
        and standard deviation; `claims`: sentences with intervals.
    """
    tables = [_table(variant, units) for variant in dict.fromkeys(_variant(unit) for unit in units)]
    claims = [claim for table in tables for claim in _claims(table)]
    return {"titles": TITLES, "tables": tables, "claims": claims, "sentence_count": len(claims), "units": units}


def metrics_of(unit: Outcome) -> dict[str, float]:
    """The accuracies of a unit by the name of the metric.

    Frozen features at the place that the dev split chose, and (`…, default`) at the encoder's own last feature.
    """
    found: dict[str, float] = {}
    scores = (unit["evaluation"] or {}).get("scores", {})
    for which, suffix in (("headline", ""), ("default", ", default")):
        if "few_shot" in scores:
            for shots, score in scores["few_shot"][which]["shots"].items():
                found[f"{shots}-shot{suffix}"] = score["mean"]
        if "knn" in scores:
            found[f"kNN{suffix}"] = scores["knn"][which]["accuracy"]
        if "linear_probe" in scores:
            found[f"linear probe{suffix}"] = scores["linear_probe"][which]["accuracy"]
    for fraction, result in unit["finetuning"].items():
        found[_finetuned(float(fraction))] = result["test"]["accuracy"]
    return found


def _finetuned(fraction: float) -> str:
    return f"fine-tuned, {100 * fraction:g} % of labels"


def _variant(unit: Outcome) -> str:
    parts = ["back"] if unit["back"] else []
    parts += [f"images={unit['images']}"] if unit["images"] else []
    return ", ".join([*parts, *([f"size={unit['size']}"] if unit["size"] else [])])


def _table(variant: str, units: list[Outcome]) -> dict[str, Any]:
    """Arm by arm the accuracies of each seed, in the order of the seeds."""
    arms: dict[str, dict[str, dict[str, Any]]] = {}
    for unit in sorted(units, key=lambda unit: unit["seed"]):
        if _variant(unit) == variant:
            for metric, accuracy in metrics_of(unit).items():
                cell = arms.setdefault(unit["arm"], {}).setdefault(metric, {"seeds": [], "accuracies": []})
                cell["seeds"].append(unit["seed"])
                cell["accuracies"].append(accuracy)
    for cells in arms.values():
        for cell in cells.values():
            values = cell["accuracies"]
            cell["mean"] = float(np.mean(values))
            cell["std"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    metrics = list(dict.fromkeys(metric for cells in arms.values() for metric in cells))
    ordered = {arm: arms[arm] for arm in TITLES if arm in arms}
    return {"variant": variant, "metrics": metrics, "arms": ordered}


def _claims(table: dict[str, Any]) -> list[dict[str, Any]]:
    """MPP against no pre-training, supervised against MPP, and both together: shown, or not resolved."""
    claims: list[dict[str, Any]] = []
    for arm in MPP:
        for metric in table["metrics"]:
            tuned = metric.startswith("fine-tuned")
            floors = ("scratch", "random") if tuned else ("random",)
            gains = [_claim(table, metric, floor, arm) for floor in floors]
            gap = _claim(table, metric, arm, "supervised")
            claims += [claim for claim in (*gains, gap) if claim is not None]
            if gains[0] is not None and gap is not None:
                claims.append(_order(table, metric, floors[0], arm, gains[0], gap))
    return claims


def _claim(table: dict[str, Any], metric: str, lower: str, higher: str) -> dict[str, Any] | None:
    """How much better one arm is than another; None where they share fewer than two seeds."""
    cells = [table["arms"].get(arm, {}).get(metric) for arm in (lower, higher)]
    if cells[0] is None or cells[1] is None:
        return None
    by_seed = [dict(zip(cell["seeds"], cell["accuracies"], strict=True)) for cell in cells]
    seeds = sorted(by_seed[0].keys() & by_seed[1].keys())
    if len(seeds) < 2:
        return None
    interval = paired([by_seed[0][seed] for seed in seeds], [by_seed[1][seed] for seed in seeds])
    shown = "shown" if interval.low > 0 else "shown, the other way round" if interval.high < 0 else "not resolved"
    points = [100 * value for value in interval]
    place = f" ({table['variant']})" if table["variant"] else ""
    return {
        "variant": table["variant"],
        "metric": metric,
        "arms": [lower, higher],
        "seeds": len(seeds),
        "mean": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "verdict": shown,
        "headline": higher in ("mean_color", "supervised") and lower in ("mean_color", "scratch", "random")
        and not metric.endswith("default") and not table["variant"],
        "sentence": f"{metric}{place}: {TITLES[higher]} is {points[0]:+.1f} points from {TITLES[lower]} "
        f"[{points[1]:+.1f}, {points[2]:+.1f}]: {shown}.",
    }  # fmt: skip


def _order(table: dict[str, Any], metric: str, floor: str, arm: str, gain: Any, gap: Any) -> dict[str, Any]:
    """The order of three arms, claimed only where both lower bounds are above 0."""
    both = gain["low"] > 0 and gap["low"] > 0
    place = f" ({table['variant']})" if table["variant"] else ""
    return {
        "variant": table["variant"],
        "metric": metric,
        "arms": [floor, arm, "supervised"],
        "seeds": min(gain["seeds"], gap["seeds"]),
        "verdict": "shown" if both else "not resolved",
        "headline": arm == "mean_color" and not metric.endswith("default") and not table["variant"],
        "sentence": f"{metric}{place}: {TITLES[floor]} < {TITLES[arm]} < supervised: "
        f"{'shown' if both else 'not resolved'}.",
    }


def curve(unit: Outcome, name: str, x: Callable[[dict[str, Any]], float]) -> list[tuple[float, float]]:
    """The points (x, value) of something that was looked at during a unit's pre-training."""
    return [(x(look), look[name]) for look in unit["pretraining"]["curve"] if look.get(name) is not None]

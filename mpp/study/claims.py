"""From the outcomes of a study's units to tables, paired intervals, and a sentence for each claim."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mpp.evaluation.controls import CONTROLS
from mpp.study.arms import MPP, TITLES
from mpp.study.statistics import paired

Outcome = dict[str, Any]

NO_SPREAD = 1e-9
"""Differences of accuracies that vary less than this are equal, but for rounding."""
NOTE = (
    "{count} comparisons, each with an interval of its own; none is corrected for their number, so about one in twenty "
    "that mean nothing would be called shown. The headline ones were chosen before anything was measured."
)


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
    note = NOTE.format(count=sum("mean" in claim for claim in claims))
    return {"titles": TITLES, "tables": tables, "claims": claims, "note": note, "units": units}


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
    """Every comparison that a study is made for: shown, or not resolved."""
    claims: list[dict[str, Any] | None] = []
    for metric in table["metrics"]:
        floor = "scratch" if metric.startswith("fine-tuned") else "random"
        for arm in MPP:
            gain, gap = _claim(table, metric, floor, arm), _claim(table, metric, arm, "supervised")
            claims += [gain, gap]
            if gain is not None and gap is not None:
                claims.append(_order(table, metric, floor, arm, gain, gap))
            claims.append(_claim(table, metric, "random", arm) if floor == "scratch" else None)
        first = _first(table)
        claims += [_claim(table, metric, control, first) for control in CONTROLS]
        claims += [_claim(table, metric, other, first) for other in MPP if other != first]
    return [claim for claim in claims if claim is not None]


def _first(table: dict[str, Any]) -> str:
    """The target that headlines are about: the mean colour, or where a study leaves it out, the next that it has."""
    return next((arm for arm in MPP if arm in table["arms"]), MPP[0])


def _is_headline(table: dict[str, Any], metric: str, arms: list[str]) -> bool:
    """The few claims that are told first, chosen before anything is measured."""
    asked = metric in ("kNN", "linear probe") or metric.startswith("fine-tuned") or metric == _most_shots(table)
    floor = "scratch" if metric.startswith("fine-tuned") else "random"
    chain = [floor, _first(table), "supervised"]
    return asked and not table["variant"] and arms in (chain[:2], chain[1:], chain)


def _most_shots(table: dict[str, Any]) -> str:
    shots = [metric for metric in table["metrics"] if metric.endswith("-shot")]
    return max(shots, key=lambda metric: int(metric.split("-")[0]), default="")


def _claim(table: dict[str, Any], metric: str, lower: str, higher: str) -> dict[str, Any] | None:
    """How much better one arm is than another; None where they share fewer than two seeds."""
    cells = [table["arms"].get(arm, {}).get(metric) for arm in (lower, higher)]
    if cells[0] is None or cells[1] is None:
        return None
    low: dict[int, float]
    high: dict[int, float]
    low, high = (dict(zip(cell["seeds"], cell["accuracies"], strict=True)) for cell in (cells[0], cells[1]))
    seeds = sorted(low.keys() & high.keys())
    if len(seeds) < 2:
        return None
    interval = paired([low[seed] for seed in seeds], [high[seed] for seed in seeds])
    if interval.high - interval.low < NO_SPREAD:  # equal differences by chance: there is nothing to judge by
        shown = "not resolved"
    else:
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
        "headline": _is_headline(table, metric, [lower, higher]),
        "sentence": f"{metric}{place}: {TITLES[higher]} against {TITLES[lower]}: {_signed(points[0])} points "
        f"[{_signed(points[1])}, {_signed(points[2])}]: {shown}.",
    }  # fmt: skip


def _signed(points: float) -> str:
    return f"{points:+.1f}".replace("-", "−")


def _order(table: dict[str, Any], metric: str, floor: str, arm: str, gain: Any, gap: Any) -> dict[str, Any]:
    """The order of three arms, claimed only where both lower bounds are above 0."""
    both = gain["verdict"] == gap["verdict"] == "shown"
    place = f" ({table['variant']})" if table["variant"] else ""
    return {
        "variant": table["variant"],
        "metric": metric,
        "arms": [floor, arm, "supervised"],
        "seeds": min(gain["seeds"], gap["seeds"]),
        "verdict": "shown" if both else "not resolved",
        "headline": _is_headline(table, metric, [floor, arm, "supervised"]),
        "sentence": f"{metric}{place}: {TITLES[floor]} < {TITLES[arm]} < supervised: "
        f"{'shown' if both else 'not resolved'}.",
    }


def curve(unit: Outcome, name: str, x: Callable[[dict[str, Any]], float]) -> list[tuple[float, float]]:
    """The points (x, value) of something that was looked at during a unit's pre-training."""
    return [(x(look), look[name]) for look in unit["pretraining"]["curve"] if look.get(name) is not None]

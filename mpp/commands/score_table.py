"""The scores of an evaluation as a table: for the terminal, and for the page of a run."""

from __future__ import annotations

import math
from typing import Any

from mpp.evaluation.features import FeatureLayer

TITLES = {"few_shot": "linear few-shot", "knn": "kNN", "linear_probe": "linear probe"}
UNITS = {"shots": "{} a class", "k": "k = {}"}
"""What is varied within an evaluator, by its name in the results."""
CONTROLS = {"raw_pixels": "pixels", "patch_colors": "colours"}
COLUMNS = 80
"""Letters of a line of the terminal."""
MANY = 0.1
"""Share of the training images above which a vote of nearest neighbours nears a vote of all."""


def score_rows(results: dict[str, Any]) -> list[list[str]]:
    """Header and rows: accuracies in per cent at the default layer, at the chosen one, of the controls, by chance."""
    controls = [name for name in CONTROLS if name in results.get("controls", {})]
    titles = ["default layer", "chosen on dev", *(CONTROLS[name] for name in controls), "chance"]
    rows = [["accuracy, %", *titles]]
    for name, entry in results["scores"].items():
        both = [entry["default"], entry["headline"]]
        scored = both + [results["controls"][control][name]["default"] for control in controls]
        layers = [str(FeatureLayer(score["block"], score["pool"])) for score in both]
        rows.append([TITLES[name], *layers, *[""] * (len(controls) + 1)])
        chance = f"{100 / results['classes']:.1f}"
        for varied, unit in UNITS.items():
            for count in sorted(both[0].get(varied, {}), key=int):
                cells = [_cell(score[varied][count]) for score in scored]
                mark = " *" if varied == "k" and _is_many(int(count), results) else ""
                rows.append([f"  {unit.format(count)}{mark}", *cells, chance])
        if name == "linear_probe":
            rows.append(["  C, chosen", *(f"{score['c']:g}" for score in scored), ""])
            rows.append(["  accuracy", *(_cell(score["accuracy"]) for score in scored), chance])
    return rows


def score_notes(results: dict[str, Any]) -> list[str]:
    """Sentences on how far the scores can be trusted."""
    notes = []
    if "few_shot" in results["scores"]:
        notes.append("few-shot: mean ± standard deviation over the draws of the labelled images")
    if any(_is_many(int(count), results) for count in results["scores"].get("knn", {}).get("default", {}).get("k", {})):
        notes.append(f"* more than a tenth of the {results['train_images']:,} training images: nearly a vote of all")
    probe = results["scores"].get("linear_probe", {})
    scored = [probe[which] for which in ("default", "headline") if which in probe]
    return [*notes, *dict.fromkeys(warning for score in scored for warning in _warnings(score))]


def score_table(results: dict[str, Any]) -> str:
    """The rows as text, at most 80 columns wide, and the notes."""
    rows = score_rows(results)
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    gap = 2 if first + sum(widths) + 2 * len(widths) <= COLUMNS else 1
    aligned = (
        [f"{row[0]:{first}}", *(f"{cell:>{width + gap}}" for cell, width in zip(row[1:], widths, strict=True))]
        for row in rows
    )
    return "\n".join([*("".join(cells).rstrip() for cells in aligned), *score_notes(results)])


def half_width(accuracy: float, images: int, z: float = 1.96) -> float:
    """Half the width of Wilson's interval of an accuracy on so many images, by default of 95 %."""
    spread = accuracy * (1 - accuracy) / images + z**2 / (4 * images**2)
    return z * math.sqrt(spread) / (1 + z**2 / images)


def _is_many(k: int, results: dict[str, Any]) -> bool:
    return k > MANY * results["train_images"]


def _cell(value: Any) -> str:
    return f"{100 * value['mean']:.1f} ± {100 * value['std']:.1f}" if isinstance(value, dict) else f"{100 * value:.1f}"


def _warnings(score: Any) -> list[str]:
    """What may be wrong with a probe."""
    warnings = []
    if end := score["grid_end"]:
        warnings.append(f"{score['c']:g} is the {end} C of linear_probe.grid: widen it, others may be better")
    if not score["converged"]:
        warnings.append("not all fits of the linear probe have converged: leave the largest C out of its grid")
    return warnings

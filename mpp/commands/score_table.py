"""The scores of an evaluation as a table: for the terminal, and for the page of a run."""

from __future__ import annotations

from typing import Any

from mpp.evaluation.features import FeatureLayer

TITLES = {"few_shot": "linear few-shot", "knn": "nearest neighbours", "linear_probe": "linear probe"}
UNITS = {"shots": "{} a class", "k": "{} neighbours"}
"""What is varied within an evaluator, by its name in the results."""
CONTROLS = {"raw_pixels": "pixels", "patch_colors": "colours"}
WIDTHS = (18, 16, 16, 11, 11, 8)
"""Of the columns, in letters: 80 together."""


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
            for count in both[0].get(varied, {}):
                cells = [_cell(score[varied][count]) for score in scored]
                rows.append([f"  {unit.format(count)}", *cells, chance])
        if name == "linear_probe":
            rows.append(["  C, chosen", *(f"{score['c']:g}" for score in scored), ""])
            rows.append(["  accuracy", *(_cell(score["accuracy"]) for score in scored), chance])
    return rows


def score_table(results: dict[str, Any]) -> str:
    """The same as text, 80 columns wide, with a warning where a score is to be taken with care."""
    rows = score_rows(results)
    widths = [*WIDTHS[: len(rows[0]) - 1], WIDTHS[-1]]
    lines = [f"{row[0]:{widths[0]}}" + _right(row[1:], widths[1:]) for row in rows]
    probe = results["scores"].get("linear_probe", {})
    scored = [probe[which] for which in ("default", "headline") if which in probe]
    return "\n".join([*lines, *dict.fromkeys(warning for score in scored for warning in _warnings(score))])


def _right(cells: list[str], widths: list[int]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


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

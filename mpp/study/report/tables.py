"""The tables and sentences of the report, as text that a template only has to lay out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpp.evaluation.controls import CONTROLS
from mpp.study.arms import MPP
from mpp.study.report.palette import Key, key
from mpp.study.report.series import Unit, Variant, fractions, mean, pool_title, scores

DEFAULT = ", default"
"""How the name of a metric at the encoder's own last feature ends."""
VERDICTS = {"shown": "yes", "shown, the other way round": "reverse", "not resolved": "open"}
"""A class name for each verdict."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    note: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class Row:
    """A row of a table, and the look of the arm that it is about."""

    title: str
    cells: Sequence[Cell]
    key: Key | None = None


@dataclass(frozen=True)
class Table:
    """A table: groups of rows, each with a heading that may be empty; columns whose names break where they say."""

    label: str
    corner: str
    columns: Sequence[str]
    groups: Sequence[tuple[str, Sequence[Row]]]


@dataclass(frozen=True)
class Sentence:
    """A claim in words, its verdict apart."""

    text: str
    verdict: str
    kind: str


@dataclass(frozen=True)
class Answer:
    """Claims about the same arms: a question, who is compared, the sum, each claim."""

    question: str
    arms: str
    summary: str
    sentences: Sequence[Sentence]


def signed(points: float, form: str = ".1f") -> str:
    """A difference with its sign, a true minus; what rounds to 0 has none."""
    text = f"{points:{form}}"
    return text.lstrip("-") if float(text) == 0 else f"+{text}" if points > 0 else f"−{text[1:]}"


def accuracies(
    tables: Sequence[tuple[str, dict[str, Any]]], titles: Mapping[str, str], label: str, *, default: bool = False
) -> Table | None:
    """Arms × metrics, in per cent: mean ± standard deviation over the seeds; None where there is nothing.

    Args:
        tables: with a heading each. Controls get one of their own.
        titles: of the arms.
        label: what the table is.
        default: the metrics at the encoder's last feature, and not those at the place that the dev split chose.
    """
    metrics = [metric for _, table in tables for metric in table["metrics"] if metric.endswith(DEFAULT) == default]
    metrics = list(dict.fromkeys(metrics))
    groups: list[tuple[str, Sequence[Row]]] = []
    for heading, table in tables:
        rows = {
            arm: _accuracy_row(arm, titles.get(arm, arm), cells, metrics)
            for arm, cells in table["arms"].items()
            if any(metric in cells for metric in metrics)
        }
        groups.append((heading, [row for arm, row in rows.items() if arm not in CONTROLS]))
        groups.append(("controls: nothing is learnt", [row for arm, row in rows.items() if arm in CONTROLS]))
    groups = [(heading, rows) for heading, rows in groups if rows]
    columns = ["seeds", *(_broken(metric.removesuffix(DEFAULT)) for metric in metrics)]
    return Table(label, "arm", columns, groups) if metrics and groups else None


def _accuracy_row(arm: str, title: str, cells: dict[str, Any], metrics: Sequence[str]) -> Row:
    counts = {metric: len(cells[metric]["seeds"]) for metric in metrics if metric in cells}
    least, most = min(counts.values()), max(counts.values())
    notes = {metric: f"{count} of {most} seeds" for metric, count in counts.items() if count < most}
    shown = [Cell(accuracy(cells.get(metric)), notes.get(metric, "")) for metric in metrics]
    return Row(title, [Cell(f"{least}–{most}" if least < most else f"{most}"), *shown], key(arm, title))


def _broken(metric: str) -> str:
    """The name of a metric on two lines: after its comma, else between its words."""
    return metric.replace(", ", ",\n") if ", " in metric else metric.replace(" ", "\n")


def accuracy(cell: dict[str, Any] | None) -> str:
    """`45.3 ± 0.4`; without ± for one seed, a dash for nothing."""
    if cell is None or not _finite(cell["mean"]):
        return "–"
    spread = f" ± {100 * cell['std']:.1f}" if _finite(cell["std"]) else ""
    return f"{100 * cell['mean']:.1f}{spread}"


def places(units: Sequence[Unit], titles: Mapping[str, str]) -> Table | None:
    """Where the dev split chose to measure, arm by evaluator."""
    evaluators = list(dict.fromkeys(name for unit in units for name in scores(unit)))
    rows: list[Row] = []
    for arm in titles:
        found = [scores(unit) for unit in units if unit["arm"] == arm and scores(unit)]
        if found and arm not in CONTROLS:
            rows.append(Row(titles[arm], [_places(found, name) for name in evaluators], key(arm, titles[arm])))
    names = {"few_shot": "few-shot", "knn": "kNN", "linear_probe": "linear probe"}
    label = "Block and pooling that the dev split chose"
    return Table(label, "arm", [names.get(name, name) for name in evaluators], [("", rows)]) if rows else None


def penalties(units: Sequence[Unit], titles: Mapping[str, str]) -> Table | None:
    """The C that the linear probe chose, arm by place; and what makes an accuracy uncertain."""
    rows: list[Row] = []
    for arm in titles:
        found = [s["linear_probe"] for unit in units if unit["arm"] == arm and "linear_probe" in (s := scores(unit))]
        if found:
            cells = [_penalties([entry[which] for entry in found]) for which in ("headline", "default")]
            rows.append(Row(titles[arm], cells, key(arm, titles[arm])))
    label = "C of the linear probe, the smaller the stiffer"
    return Table(label, "arm", ["where the dev\nsplit chose", "last\nblock"], [("", rows)]) if rows else None


def _penalties(found: Sequence[dict[str, Any]]) -> Cell:
    """How often each C; the ends of the grid, beyond which others may be better, and fits that have not converged."""
    chosen = Counter(f"{c:g}" for c in sorted(score["c"] for score in found))
    ends = sorted({f"{score['c']:g} is the {end} tried" for score in found if (end := score.get("grid_end"))})
    unfinished = sum(not score.get("converged", True) for score in found)
    ends += [f"{unfinished} not converged"] if unfinished else []
    text = "; ".join(f"{c} (×{times})" if times > 1 else c for c, times in chosen.items())
    return Cell(text, "; ".join(ends))


def _places(found: Sequence[dict[str, Any]], evaluator: str) -> Cell:
    chosen = Counter(
        f"block {entry['block']}, {pool_title(entry['pool'])}"
        for entry in (scores[evaluator]["headline"] for scores in found if evaluator in scores)
    )
    return Cell("; ".join(f"{place} (×{times})" if times > 1 else place for place, times in chosen.items()) or "–")


def claims_table(claims: Sequence[dict[str, Any]], titles: Mapping[str, str], label: str) -> Table | None:
    """Every claim with its interval, measure by measure."""
    metrics = dict.fromkeys(claim["metric"] for claim in claims)
    groups = [(metric, [_claim_row(c, titles) for c in claims if c["metric"] == metric]) for metric in metrics]
    columns = ["difference,\npoints", "95 % interval", "seeds", "verdict"]
    return Table(label, "comparison", columns, groups) if groups else None


def _claim_row(claim: dict[str, Any], titles: Mapping[str, str]) -> Row:
    names = [titles.get(arm, arm) for arm in claim["arms"]]
    place = f" ({claim['variant']})" if claim["variant"] else ""
    verdict = Cell(claim["verdict"], verdict=VERDICTS.get(claim["verdict"], "open"))
    if len(names) > 2:
        return Row(" < ".join(names) + place, [Cell("–"), Cell("–"), Cell(f"{claim['seeds']}"), verdict])
    interval = f"[{signed(100 * claim['low'])}, {signed(100 * claim['high'])}]"
    cells = [Cell(signed(100 * claim["mean"])), Cell(interval), Cell(f"{claim['seeds']}"), verdict]
    return Row(f"{names[1]} − {names[0]}{place}", cells)


def answers(claims: Iterable[dict[str, Any]], titles: Mapping[str, str]) -> list[Answer]:
    """The headline claims by the arms that they compare: the gap first, then the gains, then the orders."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for claim in claims:
        if claim["headline"]:
            groups.setdefault(tuple(claim["arms"]), []).append(claim)
    return [_answer(arms, groups[arms], titles) for arms in sorted(groups, key=_rank)]


def _rank(arms: Sequence[str]) -> int:
    return 2 if len(arms) > 2 else 0 if arms[-1] == "supervised" and arms[0] in MPP else 1


def _answer(arms: tuple[str, ...], claims: Sequence[dict[str, Any]], titles: Mapping[str, str]) -> Answer:
    names = [titles.get(arm, arm) for arm in arms]
    question = (
        f"How far ahead is {names[1]} pre-training?",
        f"Is “{names[1]}” better than “{names[0]}”?",
        f"Does “{names[1]}” lie in between?",
    )[_rank(arms)]
    counts = Counter(claim["verdict"] for claim in claims)
    measures = f"{len(claims)} measure{'s' if len(claims) > 1 else ''}"
    parts = [f"Shown by {counts['shown'] or 'none'} of {measures}"]
    parts += [
        f"{verdict.removeprefix('shown, ')} by {counts[verdict]}" for verdict in [*VERDICTS][1:] if counts[verdict]
    ]
    summary = f"{', '.join(parts)}."
    means = [claim["mean"] for claim in claims if "mean" in claim]
    if means:
        low, high = signed(100 * min(means)), signed(100 * max(means))
        summary = f"{f'{low} to {high}' if low != high else low} points of accuracy. {summary}"
    compared = " < ".join(names) if len(names) > 2 else f"{names[1]} − {names[0]}"
    return Answer(question, compared, summary, [_sentence(c) for c in claims])


def _sentence(claim: dict[str, Any]) -> Sentence:
    text = claim["sentence"].removesuffix(f": {claim['verdict']}.")
    return Sentence(text, claim["verdict"], VERDICTS.get(claim["verdict"], "open"))


def costs(units: Sequence[Unit], titles: Mapping[str, str], label: str) -> Table | None:
    """Images, floating-point operations and time of each arm, means over the seeds; variants under their headings."""
    shares = fractions(units)
    parts = ["pre-training", *(f"fine-tuning, {100 * float(share):g} %" for share in shares)]
    columns = ["seeds", "rows", *(f"{part}:\n{what}" for part in parts for what in ("images", "FLOPs", "time"))]
    groups: list[tuple[str, Sequence[Row]]] = []
    for variant in dict.fromkeys(Variant.of_unit(unit) for unit in units):
        here = [unit for unit in units if Variant.of_unit(unit) == variant]
        rows = [
            _cost_row([unit for unit in here if unit["arm"] == arm], titles[arm], shares)
            for arm in titles
            if arm not in CONTROLS and any(unit["arm"] == arm for unit in here)
        ]
        groups.append((variant_title(variant), rows))
    groups = [(heading, rows) for heading, rows in groups if rows]
    return Table(label, "arm", columns, groups) if groups else None


def _cost_row(units: Sequence[Unit], title: str, shares: Sequence[str]) -> Row:
    before = [unit["pretraining"] for unit in units if unit.get("pretraining")]
    cells = [Cell(f"{len(units)}"), Cell(_count(mean(part.get("rows") for part in before)))]
    seen = [(part.get("images_seen"), part.get("flops_per_image"), part.get("seconds")) for part in before]
    cells += _cost([(images, (images or 0) * flops if flops else None, time) for images, flops, time in seen])
    for share in shares:
        runs = [unit["finetuning"][share] for unit in units if share in unit.get("finetuning", {})]
        cells += _cost([(run.get("images_seen"), run.get("flops"), run.get("seconds")) for run in runs])
    return Row(title, cells, key(units[0]["arm"], title))


def _cost(runs: Sequence[tuple[float | None, float | None, float | None]]) -> list[Cell]:
    images, flops, seconds = (mean(run[place] for run in runs) for place in range(3))
    return [Cell(_count(images)), Cell(power(flops)), Cell(_time(seconds))]


def variant_title(variant: Variant) -> str:
    """A variant in words; empty for the study itself."""
    parts = ["the other way round"] if variant.back else []
    parts += [f"{variant.images:,} pre-training images"] if variant.images else []
    return ", ".join([*parts, *([f"size {variant.size}"] if variant.size else [])])


def power(value: float | None) -> str:
    """`2.6 × 10¹¹`; a dash for nothing."""
    if not value:
        return "–"
    exponent = math.floor(math.log10(value))
    if round(value / 10**exponent, 1) >= 10:
        exponent += 1
    return f"{value / 10**exponent:.1f} × 10{str(exponent).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, hours = round(seconds / 60), round(seconds / 60) // 60
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{hours} h {minutes % 60:02d} min"


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)

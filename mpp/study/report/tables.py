"""The tables and sentences of the report, as text that a template only has to lay out."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpp.study.claims import OPEN, REVERSE, SHOWN, signed, variant_title
from mpp.study.report.figures import POOLS, mean
from mpp.study.results import Cells, Measure, Row, measures, select
from mpp.study.units import Variant

Arms = Mapping[str, Mapping[str, str]]
"""`title` and `role` of each arm by its name."""
VERDICTS = {SHOWN: "yes", REVERSE: "reverse", OPEN: "open"}
"""A class name for each verdict."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    note: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class Line:
    """A row of a table; `arm` gives its colour."""

    title: str
    cells: Sequence[Cell]
    arm: str = ""


@dataclass(frozen=True)
class Table:
    """A table: groups of lines, each with a heading that may be empty."""

    label: str
    corner: str
    columns: Sequence[str]
    groups: Sequence[tuple[str, Sequence[Line]]]


@dataclass(frozen=True)
class Answer:
    """Headline claims about the same arms: a question, who is compared, the sum, each claim."""

    question: str
    arms: str
    summary: str
    claims: Sequence[Mapping[str, Any]]


def accuracy_table(tables: Sequence[tuple[str, Cells]], arms: Arms, label: str, layer: str = "chosen") -> Table | None:
    """Arms × measures, in per cent: mean ± standard deviation over the seeds; None where there is nothing.

    Args:
        tables: accuracies with a heading each. Controls get a group of their own.
        arms: of the study.
        label: what the table is.
        layer: of frozen features.
    """
    shown = list(dict.fromkeys(measure for _, cells in tables for measure in measures(cells, layer)))
    groups: list[tuple[str, Sequence[Line]]] = []
    for heading, cells in tables:
        here = [arm for arm in arms if any(measure in cells.get(arm, {}) for measure in shown)]
        for title, wanted in ((heading, False), ("controls: nothing is learnt", True)):
            lines = [
                _accuracy_line(arm, arms, cells[arm], shown)
                for arm in here
                if (arms[arm]["role"] == "control") == wanted
            ]
            groups += [(title, lines)] if lines else []
    columns = ["seeds", *(measure.title for measure in shown)]
    return Table(label, "arm", columns, groups) if groups else None


def _accuracy_line(arm: str, arms: Arms, found: Mapping[Measure, Mapping[int, float]], shown: list[Measure]) -> Line:
    counts = {measure: len(found[measure]) for measure in shown if measure in found}
    most = max(counts.values())
    cells = [
        Cell(
            accuracy([*found.get(m, {}).values()]), f"{counts[m]} of {most} seeds" if counts.get(m, most) < most else ""
        )
        for m in shown
    ]
    return Line(arms[arm]["title"], [Cell(f"{most}"), *cells], arm)


def accuracy(values: Sequence[float]) -> str:
    """`45.3 ± 0.4` per cent; without ± for one seed, a dash for nothing."""
    if not values:
        return "–"
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{spread}"


def layer_table(rows: Sequence[Row], arms: Arms) -> Table | None:
    """The layer that the dev split chose, arm by evaluator."""
    found = {(r.arm, r.seed, r.evaluator): r for r in select(rows, metric="accuracy", layer="chosen")}
    evaluators = list(dict.fromkeys(evaluator for _, _, evaluator in found))
    lines = []
    for arm, about in arms.items():
        own = {name: [r for (a, _, e), r in found.items() if (a, e) == (arm, name)] for name in evaluators}
        if any(own.values()) and about["role"] != "control":
            texts = [
                _counted(f"block {r.block}, {POOLS.get(r.pool or '', r.pool)}" for r in own[e]) for e in evaluators
            ]
            lines.append(Line(about["title"], [Cell(text) for text in texts], arm))
    columns = [name.replace("_", " ") for name in evaluators]
    return Table("Block and pooling that the dev split chose", "arm", columns, [("", lines)]) if lines else None


def penalty_table(rows: Sequence[Row], arms: Arms) -> Table | None:
    """The C of the linear probe, arm by layer; notes say where its accuracy is uncertain."""
    lines = []
    probe = select(rows, evaluator="linear_probe")
    for arm, about in arms.items():
        cells = []
        for layer in ("chosen", "default"):
            own = select(probe, arm=arm, layer=layer)
            c = {row.seed: f"{row.value:g}" for row in select(own, metric="c")}
            notes = sorted(
                {
                    f"{c[r.seed]} is the {'largest' if r.value > 0 else 'smallest'} tried"
                    for r in select(own, metric="at_grid_end")
                    if r.value
                }
            )
            unfinished = sum(row.value == 0 for row in select(own, metric="converged"))
            notes += [f"{unfinished} not converged"] if unfinished else []
            cells.append(Cell(_counted(sorted(c.values(), key=float)), "; ".join(notes)))
        if any(cell.text != "–" for cell in cells):
            lines.append(Line(about["title"], cells, arm))
    columns = ["chosen layer", "last block"]
    return Table("C of the linear probe (the penalty is 1 / C)", "arm", columns, [("", lines)]) if lines else None


def _counted(texts: Iterable[str]) -> str:
    counts = Counter(texts)
    return "; ".join(f"{text} (×{count})" if count > 1 else text for text, count in counts.items()) or "–"


def claims_table(claims: Sequence[dict[str, Any]], arms: Arms, label: str) -> Table | None:
    """Every claim with its interval, measure by measure."""
    groups: dict[str, list[Line]] = {}
    for claim in claims:
        measure = Measure(claim["evaluator"], claim["setting"], claim["layer"])
        heading = measure.title + (", last block" if measure.layer == "default" else "")
        groups.setdefault(heading, []).append(_claim_line(claim, arms))
    columns = ["difference, points", "95 % interval", "seeds", "verdict"]
    return Table(label, "comparison", columns, [*groups.items()]) if groups else None


def _claim_line(claim: dict[str, Any], arms: Arms) -> Line:
    names = [arms[arm]["title"] for arm in claim["arms"]]
    variant = Variant(claim["swapped"], claim["images"], claim["size"])
    where = f" ({variant_title(variant)})" if variant_title(variant) else ""
    verdict = [Cell(f"{len(claim['seeds'])}"), Cell(claim["verdict"], verdict=VERDICTS[claim["verdict"]])]
    if "mean" not in claim:
        return Line(" < ".join(names) + where, [Cell("–"), Cell("–"), *verdict])
    mean, low, high = (signed(100 * claim[name]) for name in ("mean", "low", "high"))
    return Line(f"{names[1]} − {names[0]}{where}", [Cell(mean), Cell(f"[{low}, {high}]"), *verdict])


def answers(claims: Iterable[dict[str, Any]], arms: Arms) -> list[Answer]:
    """The headline claims by the arms that they compare: the gap first, then the gains, then the orders."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for claim in claims:
        if claim["headline"]:
            groups.setdefault(tuple(claim["arms"]), []).append(claim)

    def rank(names: Sequence[str]) -> int:
        return 2 if len(names) > 2 else 0 if arms[names[-1]]["role"] == "supervised" else 1

    return [_answer(rank(names), names, groups[names], arms) for names in sorted(groups, key=rank)]


def _answer(rank: int, names: tuple[str, ...], claims: Sequence[dict[str, Any]], arms: Arms) -> Answer:
    titles = [arms[name]["title"] for name in names]
    question = (
        f"How far ahead is {titles[1]} pre-training?",
        f"Is “{titles[1]}” better than “{titles[0]}”?",
        f"Is “{titles[1]}” in between?",
    )[rank]
    counts = Counter(claim["verdict"] for claim in claims)
    parts = [f"{verdict} by {counts[verdict]}" for verdict in VERDICTS if counts[verdict]]
    summary = f"Of {len(claims)} measures: {'; '.join(parts)}."
    means = [claim["mean"] for claim in claims if "mean" in claim]
    if means:
        summary = f"{signed(100 * min(means))} to {signed(100 * max(means))} points of accuracy. {summary}"
    marked = [{**claim, "kind": VERDICTS[claim["verdict"]]} for claim in claims]
    return Answer(question, " < ".join(titles) if rank == 2 else f"{titles[1]} − {titles[0]}", summary, marked)


def cost_table(rows: Sequence[Row], arms: Arms, label: str) -> Table | None:
    """Images, floating-point operations and time of each arm, means over the seeds; searches count too."""
    shares = sorted({row.setting or 0.0 for row in select(rows, evaluator="finetune")})
    parts: list[tuple[str, str, float | None]] = [("pre-training", "pretrain", None)]
    for share in shares:
        parts.append((f"fine-tuning, {100 * share:g} %", "finetune", share))
        if select(rows, evaluator="search", setting=share):
            parts.append((f"its search, {100 * share:g} %", "search", share))
    formats = {"images_seen": ("images", _count), "flops": ("FLOPs", power), "seconds": ("time", _time)}
    columns = ["seeds", *(f"{part}: {name}" for part, _, _ in parts for name, _ in formats.values())]
    groups: list[tuple[str, Sequence[Line]]] = []
    for variant in dict.fromkeys(row.variant for row in rows):
        lines = []
        for arm, about in arms.items():
            own = select(rows, arm=arm, variant=variant)
            if not own or about["role"] == "control":
                continue
            cells = [Cell(f"{len({row.seed for row in own})}")]
            for _, evaluator, share in parts:
                for metric, (_, written) in formats.items():
                    found = select(own, evaluator=evaluator, setting=share, metric=metric, samples=None)
                    cells.append(Cell(written(mean(row.value for row in found))))
            lines.append(Line(about["title"], cells, arm))
        groups += [(variant_title(variant), lines)] if lines else []
    return Table(label, "arm", columns, groups) if groups else None


def power(value: float | None) -> str:
    """`2.6 × 10¹¹`; a dash for nothing."""
    if not value:
        return "–"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits} × 10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _time(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return "–"
    minutes, hours = round(seconds / 60), round(seconds / 60) // 60
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{hours} h {minutes % 60:02d} min"

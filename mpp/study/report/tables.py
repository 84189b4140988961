"""The tables of the report, as text that a template only has to lay out."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from mpp.study.claims import OPEN, REVERSE, SHOWN, WITHHELD, signed, variant_title
from mpp.study.pilot import Tried
from mpp.study.report.figures import POOLS, axes_of, measure_of
from mpp.study.results import Row, accuracies, measures, select
from mpp.study.units import Variant

Arms = Mapping[str, Mapping[str, str]]
"""`title` and `role` of each arm by its name."""
VERDICTS = {SHOWN: "yes", REVERSE: "reverse", OPEN: "open", WITHHELD: "open"}
"""A class of the style sheet for each verdict."""
COSTS = {
    "images_seen": ("images", "{:,.0f}".format),
    "flops": ("FLOPs", "{:.1e}".format),
    "core_seconds": ("core time", lambda seconds: str(timedelta(seconds=round(seconds)))),
}
"""What training costs: a heading, and how it is written."""
NAMES = {"few_shot": "few-shot", "knn": "kNN", "linear_probe": "linear probe"}
"""Of evaluators."""
CHOSEN = " ✓"
"""After an accuracy of the pilot, of what was chosen."""
TRAININGS = ("pretrain", "finetune", "search")


class Line(NamedTuple):
    """A row of a table; `arm` gives its colour."""

    title: str
    cells: Sequence[str]
    arm: str = ""


class Table(NamedTuple):
    """A table: groups of lines, each with a heading that may be empty."""

    label: str
    columns: Sequence[str]
    groups: Sequence[tuple[str, Sequence[Line]]]

    @property
    def rows(self) -> int:
        """How many it has, headings included."""
        return sum(len(lines) + bool(heading) for heading, lines in self.groups)


def class_of(cell: str) -> str:
    """The class of the style sheet of a cell."""
    return "chosen" if cell.endswith(CHOSEN) else VERDICTS.get(cell, "")


def table_of(label: str, columns: Sequence[str], groups: Iterable[tuple[str, Sequence[Line]]]) -> Table | None:
    """A table of the groups that have lines; None if there are none."""
    kept = [(heading, lines) for heading, lines in groups if lines]
    return Table(label, columns, kept) if kept else None


def accuracy_table(rows: Sequence[Row], arms: Arms, label: str, layer: str = "chosen") -> Table | None:
    """Arms × measures, in per cent: mean ± standard deviation over the seeds, a group for each variant."""
    tables = {variant: accuracies(rows, variant) for variant in dict.fromkeys(row.variant for row in rows)}
    shown = list(dict.fromkeys(measure for cells in tables.values() for measure in measures(cells, layer)))
    groups: list[tuple[str, list[Line]]] = []
    for variant, cells in tables.items():
        lines: dict[bool, list[Line]] = {False: [], True: []}
        for arm, about in arms.items():
            found = [[*cells.get(arm, {}).get(measure, {}).values()] for measure in shown]
            if most := max(map(len, found), default=0):
                line = Line(about["title"], [f"{most}", *(accuracy(values, most) for values in found)], arm)
                lines[about["role"] == "control"].append(line)
        named = len(tables) > 1 or axes_of(variant)
        heading = variant_title(variant) or "as in the recipe" if named else ""
        groups += [(heading, lines[False]), ("controls: nothing is learnt", lines[True])]
    return table_of(label, ["arm", "seeds", *(measure.title for measure in shown)], groups)


def accuracy(values: Sequence[float], seeds: int) -> str:
    """`45.3 ± 0.4` per cent; without ± for one seed, a dash for nothing, with a note if seeds are missing."""
    if not values:
        return "–"
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    note = f" ({len(values)} of {seeds} seeds)" if len(values) < seeds else ""
    return f"{100 * statistics.fmean(values):.1f}{spread}{note}"


def layer_table(rows: Sequence[Row], arms: Arms) -> Table | None:
    """The layer that the dev split chose, arm by evaluator."""
    chosen = {
        (row.arm, row.evaluator, row.seed): f"block {row.block}, {POOLS.get(row.pool or '', row.pool)}"
        for row in select(rows, metric="accuracy", layer="chosen")
        if arms[row.arm]["role"] != "control"
    }
    evaluators = list(dict.fromkeys(evaluator for _, evaluator, _ in chosen))
    lines = []
    for arm, about in arms.items():
        own = {(name, seed): layer for (other, name, seed), layer in chosen.items() if other == arm}
        cells = [_counted(layer for (name, _), layer in own.items() if name == each) for each in evaluators]
        if own:
            lines.append(Line(about["title"], cells, arm))
    columns = ["arm", *(NAMES.get(name, name) for name in evaluators)]
    return table_of("Block and pooling that the dev split chose", columns, [("", lines)])


def penalty_table(rows: Sequence[Row], arms: Arms) -> Table | None:
    """The C of the linear probe, arm by layer, with the reasons to doubt its accuracy."""
    probe = select(rows, evaluator="linear_probe")
    lines = []
    for arm, about in arms.items():
        cells = [_penalties(select(probe, arm=arm, layer=layer)) for layer in ("chosen", "default")]
        if cells != ["–", "–"]:
            lines.append(Line(about["title"], cells, arm))
    label = "C of the linear probe (the penalty is 1 / C)"
    return table_of(label, ["arm", "chosen layer", "last block"], [("", lines)])


def _penalties(rows: Sequence[Row]) -> str:
    """Every C; which of them are at an end of the grid, and how many fits did not converge."""
    c = {row.seed: row.value for row in select(rows, metric="c")}
    ends = {
        f"{c[row.seed]:g} is the {'largest' if row.value > 0 else 'smallest'} tried"
        for row in select(rows, metric="at_grid_end")
        if row.value
    }
    unfinished = sum(row.value == 0 for row in select(rows, metric="converged"))
    notes = [*sorted(ends), *([f"{unfinished} not converged"] if unfinished else [])]
    return _counted(f"{value:g}" for value in sorted(c.values())) + (f" ({'; '.join(notes)})" if notes else "")


def _counted(texts: Iterable[str]) -> str:
    counts = Counter(texts)
    return "; ".join(f"{text} (×{count})" if count > 1 else text for text, count in counts.items()) or "–"


def primary_table(claims: Sequence[dict[str, Any]], arms: Arms, label: str) -> Table | None:
    """The primary claims, with what the study could have shown."""
    columns = ["claim", "difference, points", "95 % interval", "adjusted p", "could have shown, points", "seeds",
               "verdict"]  # fmt: skip
    return table_of(label, columns, [("", [_primary_line(claim, arms) for claim in claims])])


def _primary_line(claim: dict[str, Any], arms: Arms) -> Line:
    lower, higher = (arms[arm]["title"] for arm in claim["arms"])
    able = claim["detectable"]
    cells = [*_difference(claim), p_value(claim["adjusted_p"]), "–" if able is None else f"{100 * able:.1f}"]
    title = f"{higher} − {lower}, {measure_of(claim).title}"
    return Line(title, [*cells, f"{len(claim['seeds'])}", claim["verdict"]])


def p_value(p: float | None) -> str:
    """A p-value to three decimals; a dash where there is none."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def claims_table(claims: Sequence[dict[str, Any]], arms: Arms, label: str) -> Table | None:
    """Exploratory claims: comparisons × measures, differences with their intervals in points."""
    titles = list(dict.fromkeys(measure_of(claim)._replace(layer=None).title for claim in claims))
    layers: dict[bool, dict[str, dict[str, dict[str, Any]]]] = {False: {}, True: {}}
    for claim in claims:
        comparison = layers[claim["layer"] == "default"].setdefault(_comparison(claim, arms), {})
        comparison[measure_of(claim).title] = claim
    groups = []
    for last, comparisons in layers.items():
        lines = []
        for title, found in comparisons.items():
            most = max(len(claim["seeds"]) for claim in found.values())
            cells = [_with_interval(found[each], most) if each in found else "–" for each in titles]
            lines.append(Line(title, [f"{most}", *cells]))
        groups.append(("last block" if last else "", lines))
    return table_of(label, ["comparison", "seeds", *titles], groups)


def _comparison(claim: dict[str, Any], arms: Arms) -> str:
    """`supervised − MPP, mean colour (0.25 × the length)`; along an axis `supervised: 0.25 × the length − as in …`."""
    lower, higher = (arms[arm]["title"] for arm in claim["arms"])
    variant = variant_title(Variant(**{name: claim[name] for name in Variant._fields}))
    if claim["arms"][0] == claim["arms"][1]:
        return f"{higher}: {variant} − as in the recipe"
    return f"{higher} − {lower}" + (f" ({variant})" if variant else "")


def _with_interval(claim: dict[str, Any], seeds: int) -> str:
    """`+3.9 [+2.1, +5.7]`, with a note if seeds are missing."""
    mean, interval = _difference(claim)
    note = f" ({len(claim['seeds'])} of {seeds} seeds)" if len(claim["seeds"]) < seeds else ""
    return (mean if interval == "–" else f"{mean} {interval}") + note


def _difference(claim: dict[str, Any]) -> tuple[str, str]:
    """The mean and the interval in points; a dash where a single seed has none."""
    mean, *bounds = (None if claim[name] is None else signed(100 * claim[name]) for name in ("mean", "low", "high"))
    return mean or "–", "–" if None in bounds else f"[{bounds[0]}, {bounds[1]}]"


def cost_table(rows: Sequence[Row], arms: Arms, tried: Sequence[Tried], label: str) -> Table | None:
    """Images, floating-point operations and core time of each arm, means over the seeds; searches count too.

    The pilot of an arm is paid once: its columns are the sum of all that it tried.
    """
    parts: list[tuple[str, str, float | None]] = [("pre-training", "pretrain", None)]
    for fraction in sorted({row.setting or 0.0 for row in select(rows, evaluator="finetune")}):
        parts.append((f"fine-tuning, {100 * fraction:g} %", "finetune", fraction))
        if select(rows, evaluator="search", setting=fraction):
            parts.append((f"its search, {100 * fraction:g} %", "search", fraction))
    groups: list[tuple[str, list[Line]]] = []
    for variant in dict.fromkeys(row.variant for row in rows):
        lines = []
        for arm, about in arms.items():
            own = select(rows, arm=arm, variant=variant, samples=None)
            if not own or about["role"] == "control":
                continue
            cells = [f"{len({row.seed for row in own})}"]
            for _, evaluator, fraction in parts:
                for metric, (_, written) in COSTS.items():
                    found = select(own, evaluator=evaluator, setting=fraction, metric=metric)
                    cells.append(written(statistics.fmean(row.value for row in found)) if found else "–")
            own_pilot = [each for each in tried if each.arm == arm and variant == Variant()]
            if tried:
                cells += costs_of(own_pilot) if own_pilot else ["–"] * len(COSTS)
            lines.append(Line(about["title"], cells, arm))
        groups.append((variant_title(variant), lines))
    names = [part for part, _, _ in parts] + ["pilot, in all"] * bool(tried)
    columns = ["arm", "seeds", *(f"{part}: {name}" for part in names for name, _ in COSTS.values())]
    return table_of(label, columns, groups)


def costs_of(tried: Iterable[Tried]) -> list[str]:
    """Images, operations and core time of trainings, as text."""
    found = list(tried)
    return [written(sum(getattr(each, metric) for each in found)) for metric, (_, written) in COSTS.items()]


def total_cost(rows: Sequence[Row], tried: Sequence[Tried]) -> dict[str, str]:
    """What all training of the study cost, the pilot included, as text, by the headings of `COSTS`."""
    found = {}
    for metric, (name, written) in COSTS.items():
        spent = [row.value for row in select(rows, metric=metric) if row.evaluator in TRAININGS]
        found[name] = written(sum(spent) + sum(getattr(each, metric) for each in tried))
    return found

"""The figures of the report as SVG. Imports matplotlib."""

from __future__ import annotations

import base64
import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from mpp.study.claims import OPEN, signed
from mpp.study.results import Measure

Runs = list[list[tuple[float, float]]]
"""A curve for each seed: points (x, y), ascending in x."""
WIDTH = 4.0
"""Inches."""
INK, MUTED, RULE, BAND = "#101112", "#626364", "#d9dadb", "#f2f3f4"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mpp",
    "text.parse_math": False,
    "font.size": 10,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "lines.scale_dashes": True,
}


class Look(NamedTuple):
    """How an arm is drawn, the same in every figure of a page."""

    color: str
    marker: str
    """By matplotlib's name."""
    symbol: str
    """The same marker as text, for legends."""
    dashes: tuple[float, ...] = ()


# After Okabe and Ito (2008), darkened until each has a contrast of 3 : 1 with white.
LOOKS = (
    Look("#767676", "X", "✖", (1, 1.2)),
    Look("#8a6d00", "v", "▼", (5, 1.5, 1, 1.5)),
    Look("#0072b2", "o", "●"),
    Look("#008f68", "s", "■", (6, 1.5)),
    Look("#b8568d", "^", "▲", (3, 1.2)),
    Look("#d55e00", "P", "✚"),
    Look("#2b8fc9", "D", "◆", (1.5, 1)),
    Look("#6b5344", "p", "⬟", (1, 2.5)),
    Look("#4f5d63", "d", "♦", (2, 2.5)),
    Look("#5b5b8c", "*", "★", (4, 2)),
)


@dataclass(frozen=True)
class Panel:
    """A figure for the page."""

    title: str
    source: str
    """SVG as a data URI."""
    description: str
    arms: tuple[str, ...]
    """What the legend must explain."""


class Charts:
    """Draws the figures of one page.

    Args:
        titles: of the arms, in their order.
    """

    def __init__(self, titles: Mapping[str, str]) -> None:
        self.titles = titles
        self.looks = {arm: LOOKS[number % len(LOOKS)] for number, arm in enumerate(titles)}

    def lines(
        self,
        title: str,
        curves: Mapping[str, Runs],
        *,
        x: str,
        y: str,
        levels: Mapping[str, float | None] | None = None,
        log: bool = False,
        categories: Sequence[str] = (),
        limits: tuple[float, float] | None = None,
    ) -> Panel | None:
        """The mean over the seeds of each arm, and each seed as a thin line; None if there is nothing to see.

        Args:
            title: what the panel shows.
            curves: by arm; points that are not finite are left out.
            x, y: names of the axes.
            levels: horizontal lines with their names; None is left out.
            log: a logarithmic x axis.
            categories: names of x = 0, 1, 2, …
            limits: of the y axis.
        """
        curves = {arm: kept for arm, runs in curves.items() if (kept := _finite(runs))}
        if not curves:
            return None
        with _style():
            figure, axes = _frame(2.9, left=0.68)
            ends = [_draw_arm(axes, self.looks[arm], runs) for arm, runs in curves.items()]
            axes.set(xlabel=x, ylabel=y)
            if limits is not None:
                axes.set_ylim(*limits)
            _x_axis(axes, curves, log, categories)
            _draw_levels(axes, levels or {})
            axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
            what = "; ".join(
                f"{self.titles[arm]} {end[1]:.3g} at {categories[int(end[0])] if categories else _short(end[0])}"
                for arm, end in zip(curves, ends, strict=True)
            )
            return self._panel(figure, title, f"{y} against {x}. Last points: {what}.", tuple(curves))

    def forest(self, title: str, claims: Sequence[dict[str, Any]], arms: Sequence[str]) -> Panel | None:
        """Differences with their intervals against 0, in points; hollow where they are not resolved.

        Args:
            title: which difference is shown.
            claims: of two arms, as JSON.
            arms: the one that each claim is about, and by which it is coloured.
        """
        shown = [(c, arm) for c, arm in zip(claims, arms, strict=True) if _is_number(c["mean"], c["low"], c["high"])]
        if not shown:
            return None
        named = [Measure(c["evaluator"], c["setting"], c["layer"]).title for c, _ in shown]
        metrics = list(dict.fromkeys(named))
        kinds = [arm for arm in self.titles if any(arm == other for _, other in shown)]
        step = min(0.8 / len(kinds), 0.3)
        with _style():
            height = 0.6 + len(metrics) * max(0.16 * len(kinds) + 0.1, 0.38)
            figure, axes = _frame(height, left=1.25)
            axes.grid(visible=False, axis="y")
            low, high = _edges([claim for claim, _ in shown])
            for row in range(0, len(metrics), 2):
                axes.axhspan(row - 0.5, row + 0.5, color=BAND, linewidth=0, zorder=0)
            axes.axvline(0, color=INK, linewidth=1, zorder=1)
            for name, (claim, arm) in zip(named, shown, strict=True):
                at = metrics.index(name) + step * (kinds.index(arm) - (len(kinds) - 1) / 2)
                _draw_interval(axes, self.looks[arm], at, claim, low, high)
            axes.set_xlim(low - 0.05 * (high - low), high + 0.05 * (high - low))
            axes.set_ylim(len(metrics) - 0.5, -0.5)
            axes.set_yticks(range(len(metrics)), [metric.replace(", ", ",\n") for metric in metrics])
            axes.tick_params(axis="y", length=0)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(value, "g")))
            axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
            axes.set_xlabel("difference in accuracy, points")
            what = "; ".join(
                f"{name}, {self.titles[arm]}: {signed(100 * claim['mean'])} "
                f"[{signed(100 * claim['low'])}, {signed(100 * claim['high'])}]"
                for name, (claim, arm) in zip(named, shown, strict=True)
            )
            return self._panel(figure, title, what, tuple(kinds))

    def _panel(self, figure: Figure, title: str, description: str, arms: tuple[str, ...]) -> Panel:
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
        return Panel(
            title, f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}", description, arms
        )


@contextmanager
def _style() -> Iterator[None]:
    """The page's style, whatever the user's own settings of matplotlib are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def _frame(height: float, left: float) -> tuple[Figure, Axes]:
    """A figure with one pair of axes and margins in inches: the same in all panels, so that these line up."""
    figure = Figure((WIDTH, height))
    margins = {"left": left / WIDTH, "right": 1 - 0.15 / WIDTH, "bottom": 0.5 / height, "top": 1 - 0.08 / height}
    axes = figure.subplots(gridspec_kw=margins)
    return figure, axes


def _is_number(*values: Any) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _finite(runs: Runs) -> Runs:
    kept = [[point for point in run if _is_number(*point)] for run in runs]
    return [run for run in kept if run]


def _mean(runs: Runs) -> list[tuple[float, float]]:
    """The mean where all seeds have a point, or where any has if there is no such place."""
    by_seed = [dict(run) for run in runs]
    places = set.intersection(*(set(run) for run in by_seed)) or set().union(*by_seed)
    return [(x, float(np.mean([run[x] for run in by_seed if x in run]))) for x in sorted(places)]


def _draw_arm(axes: Axes, look: Look, runs: Runs) -> tuple[float, float]:
    """Draw an arm's lines; the last point of its mean."""
    mean = _mean(runs)
    for run in runs if len(runs) > 1 else ():
        axes.plot(*zip(*run, strict=True), color=look.color, linewidth=0.7, alpha=0.45, zorder=2)
    (line,) = axes.plot(
        *zip(*mean, strict=True), color=look.color, linewidth=1.7, marker=look.marker, markersize=5, zorder=3,
        markeredgecolor="white", markeredgewidth=0.5, markevery=max(len(mean) // 8, 1),
    )  # fmt: skip
    if look.dashes:
        line.set_dashes(look.dashes)
    return mean[-1]


def _x_axis(axes: Axes, curves: Mapping[str, Runs], log: bool, categories: Sequence[str]) -> None:
    values = sorted({x for runs in curves.values() for run in runs for x, _ in run})
    if categories:
        axes.set_xticks(range(len(categories)), [textwrap.shorten(name, 16) for name in categories])
        axes.set_xlim(-0.3, len(categories) - 0.7)
        return
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=all(x == int(x) for x in values)))
    if log and values[0] > 0:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(FixedLocator(values) if len(values) <= 6 else LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


def _draw_levels(axes: Axes, levels: Mapping[str, float | None]) -> None:
    """Horizontal lines, named at the right: the upper ones above, the lowest below itself if it has a neighbour."""
    found = {name: value for name, value in levels.items() if value is not None and math.isfinite(value)}
    if not found:
        return
    low, high = axes.get_ylim()
    low, high = min(low, *found.values()), max(high, *found.values())
    axes.set_ylim(low - 0.04 * (high - low), high + 0.07 * (high - low))
    for number, (name, value) in enumerate(sorted(found.items(), key=lambda item: -item[1])):
        axes.axhline(value, color=MUTED, linewidth=1.1, dashes=(2, 2) if number else (5, 2), zorder=1)
        others = [abs(value - other) for other in found.values() if other > value]
        below = bool(others) and min(others) < 0.09 * (high - low)
        axes.annotate(
            name, (1, value), xycoords=("axes fraction", "data"), xytext=(0, -2 if below else 2), color=MUTED,
            textcoords="offset points", ha="right", va="top" if below else "bottom", fontsize=9,
        )  # fmt: skip


def _edges(claims: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Where the axis ends, in points: with 0, every mean, and all intervals but those much wider than most."""
    lows, highs = ([100 * claim[name] for claim in claims] for name in ("low", "high"))
    ends = [max(abs(low), abs(high)) for low, high in zip(lows, highs, strict=True)]
    most = max(1.5 * float(np.quantile(ends, 0.75)), 1.3 * max(100 * abs(claim["mean"]) for claim in claims)) or 1.0
    return max(min(0.0, *lows), -most), min(max(0.0, *highs), most)


def _draw_interval(axes: Axes, look: Look, at: float, claim: dict[str, Any], least: float, most: float) -> None:
    """A point with whiskers; a whisker that leaves the axis ends in an arrow."""
    low, mean, high = (100 * claim[name] for name in ("low", "mean", "high"))
    axes.plot([max(low, least), min(high, most)], [at, at], color=look.color, linewidth=1.5, zorder=2)
    if low < least:
        axes.plot(least, at, "<", color=look.color, markersize=4.5, zorder=2)
    if high > most:
        axes.plot(most, at, ">", color=look.color, markersize=4.5, zorder=2)
    axes.plot(
        mean, at, look.marker, color=look.color, markersize=5.5, zorder=3, markeredgewidth=1.2,
        markerfacecolor="white" if claim["verdict"] == OPEN else look.color,
    )  # fmt: skip


def _short(value: float) -> str:
    """500, 2.5k, 1M: three digits and a prefix."""
    for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"

"""The figures of the report as SVG. Imports matplotlib."""

from __future__ import annotations

import base64
import io
import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from mpp.study.claims import REVERSE, SHOWN, signed
from mpp.study.results import Measure

Runs = list[list[tuple[float, float]]]
"""A curve for each seed: points (x, y), ascending in x."""
WIDTH = 4.0
"""Of a panel, in inches."""
INK, MUTED, RULE, BAND = "#101112", "#626364", "#d9dadb", "#f2f3f4"
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
STYLE: dict[str, Any] = {
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
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "lines.markersize": 5,
}
# After Okabe and Ito (2008), darkened until each has a contrast of 3 : 1 with white.
COLORS = ("#767676", "#8a6d00", "#0072b2", "#008f68", "#b8568d", "#d55e00", "#2b8fc9", "#6b5344", "#4f5d63", "#5b5b8c")
MARKERS = "Xvos^PDpd*"
LINESTYLES = (":", "-.", "-", "--")


class Look(NamedTuple):
    """How an arm is drawn in every figure of a page, as keyword arguments of matplotlib."""

    label: str
    color: str
    marker: str
    linestyle: str


Looks = Mapping[str, Look]


def looks_of(titles: Mapping[str, str]) -> dict[str, Look]:
    """A look for each arm, from the titles of the arms."""
    kinds = zip(itertools.cycle(COLORS), itertools.cycle(MARKERS), itertools.cycle(LINESTYLES), strict=True)
    return {arm: Look(title, *kind) for (arm, title), kind in zip(titles.items(), kinds, strict=False)}


class Image(NamedTuple):
    """A panel or a key for the page: SVG as a data URI, and its description."""

    source: str
    description: str
    title: str = ""


class Chart(NamedTuple):
    """Panels to be laid out beside each other, under one legend."""

    legend: Sequence[Image]
    """What each line and marker is, its name as the description."""
    panels: Sequence[Image]


@dataclass(frozen=True)
class Lines:
    """A panel: the mean over the seeds of each arm, and each seed as a thin line."""

    title: str
    x: str
    y: str
    curves: Mapping[str, Runs]
    """By arm."""
    levels: Mapping[str, float | None] = field(default_factory=dict)
    """One or two horizontal lines by name; None is left out."""
    log: bool = False
    """A logarithmic x axis, with a tick for each x."""
    categories: Sequence[str] = ()
    """Names of x = 0, 1, 2, …"""
    own_axis: bool = False
    """Its y is not that of its neighbours."""

    height = 2.7  # inches
    shared = "y"

    def draw(self, axes: Axes, looks: Looks) -> None:
        """Draw it."""
        for arm, runs in self.curves.items():
            for run in runs if len(runs) > 1 else ():
                axes.plot(*zip(*run, strict=True), color=looks[arm].color, linewidth=0.7, alpha=0.45)
            mean = _mean(runs)
            axes.plot(*zip(*mean, strict=True), **looks[arm]._asdict(), markevery=max(len(mean) // 8, 1))
        for name, line in self.drawn_levels():
            axes.axhline(self.levels[name] or 0.0, **_level(name, line))
        axes.set(xlabel=self.x, ylabel=self.y)
        values = sorted({x for runs in self.curves.values() for run in runs for x, _ in run})
        if self.categories:
            axes.set_xticks(range(len(self.categories)), [textwrap.fill(name, 16) for name in self.categories])
            return
        if self.log:
            axes.set_xscale("log")
            axes.set_xticks(values)
            axes.minorticks_off()
        else:
            axes.locator_params(axis="x", nbins=5, integer=True)
        axes.xaxis.set_major_formatter(EngFormatter(sep="") if values[-1] >= 1000 else "{x:g}")

    def arms(self, _: Looks) -> Iterable[str]:
        """The arms that are drawn."""
        return self.curves

    def drawn_levels(self) -> list[tuple[str, str]]:
        """The name and the style of each horizontal line."""
        pairs = zip(self.levels.items(), ("--", ":"), strict=False)
        return [(name, line) for (name, value), line in pairs if value is not None]

    def description(self, looks: Looks) -> str:
        """The last points in words."""
        points = []
        for arm, runs in self.curves.items():
            x, y = _mean(runs)[-1]
            where = self.categories[int(x)] if self.categories else f"{x:,.4g}"
            points.append(f"{looks[arm].label} {y:.3g} at {where}")
        return f"{self.y} against {self.x}. Last points: {'; '.join(points)}."


@dataclass(frozen=True)
class Forest:
    """A panel: differences with their intervals against 0, in points; hollow where they are not resolved."""

    title: str
    claims: Sequence[tuple[str, Mapping[str, Any]]]
    """Claims of two arms as JSON, each with the arm that gives its colour."""

    own_axis = False
    shared = "x"

    @property
    def _measures(self) -> list[str]:
        return list(dict.fromkeys(_measure(claim) for _, claim in self.claims))

    @property
    def height(self) -> float:
        """Inches."""
        arms = {arm for arm, _ in self.claims}
        return 0.65 + len(self._measures) * max(0.16 * len(arms) + 0.1, 0.38)

    def draw(self, axes: Axes, looks: Looks) -> None:
        """Draw it."""
        measures = self._measures
        arms = self.arms(looks)
        offsets = min(0.8 / len(arms), 0.3) * (np.arange(len(arms)) - (len(arms) - 1) / 2)
        for row in range(0, len(measures), 2):
            axes.axhspan(row - 0.5, row + 0.5, color=BAND, linewidth=0, zorder=0)
        axes.axvline(0, color=INK, linewidth=1, zorder=1)
        for arm, claim in self.claims:
            at = measures.index(_measure(claim)) + offsets[arms.index(arm)]
            low, mean, high = _points(claim)
            face = looks[arm].color if claim["verdict"] in (SHOWN, REVERSE) else "white"
            axes.hlines(at, low, high, color=looks[arm].color, linewidth=1.5, zorder=2)
            axes.plot(mean, at, looks[arm].marker, color=looks[arm].color, markerfacecolor=face, zorder=3)
        axes.grid(visible=False, axis="y")
        axes.set(xlabel="difference in accuracy, points", xlim=self._limits())
        axes.set_ylim(len(measures) - 0.5, -0.5)
        axes.set_yticks(range(len(measures)), [measure.replace(", ", ",\n") for measure in measures])
        axes.xaxis.set_major_formatter(lambda value, _: signed(value, "g"))

    def arms(self, looks: Looks) -> list[str]:
        """The arms that are drawn, from the top down."""
        return [arm for arm in looks if any(arm == other for other, _ in self.claims)]

    def drawn_levels(self) -> list[tuple[str, str]]:
        """No horizontal lines."""
        return []

    def _limits(self) -> tuple[float, float]:
        """0, every mean, and all intervals but those much wider than most."""
        lows, means, highs = np.transpose([_points(claim) for _, claim in self.claims])
        ends = np.maximum(abs(lows), abs(highs))
        most = max(1.5 * np.quantile(ends, 0.75), 1.3 * abs(means).max()) or 1.0
        low, high = max(min(0.0, lows.min()), -most), min(max(0.0, highs.max()), most)
        return low - 0.05 * (high - low), high + 0.05 * (high - low)

    def description(self, _: Looks) -> str:
        """The differences in words."""
        return "; ".join(claim["text"] for _, claim in self.claims)


def draw(panels: Iterable[Lines | Forest], looks: Looks) -> Chart | None:
    """Draw panels, whose shared axis has the same ends in all of them, and their legend; None if there are none."""
    shown = list(panels)
    if not shown:
        return None
    with style.context(["default", STYLE]):  # whatever the user's own settings are
        figures = [Figure(figsize=(WIDTH, panel.height), layout="constrained") for panel in shown]
        for panel, figure in zip(shown, figures, strict=True):
            panel.draw(figure.add_subplot(), looks)
        _share(shown, [figure.axes[0] for figure in figures])
        images = [
            Image(_svg(figure), f"{panel.title}: {panel.description(looks)}", panel.title)
            for panel, figure in zip(shown, figures, strict=True)
        ]
        arms = {arm for panel in shown for arm in panel.arms(looks)}
        levels = dict(level for panel in shown for level in panel.drawn_levels())
        legend = [_key(look._asdict()) for arm, look in looks.items() if arm in arms]
        return Chart([*legend, *(_key(_level(name, line)) for name, line in levels.items())], images)


def _share(panels: Sequence[Lines | Forest], axes: Sequence[Axes]) -> None:
    """Give the axis that neighbouring panels share the same ends in all of them."""
    own = [each for panel, each in zip(panels, axes, strict=True) if not panel.own_axis]
    shared = panels[0].shared
    ends = np.array([getattr(each, f"get_{shared}lim")() for each in own]) if own else np.zeros((1, 2))
    for each in own:
        each.set(**{f"{shared}lim": (float(ends[:, 0].min()), float(ends[:, 1].max()))})


def _level(name: str, linestyle: str) -> dict[str, Any]:
    return {"label": name, "color": MUTED, "linewidth": 1.1, "linestyle": linestyle}


def _key(look: Mapping[str, Any]) -> Image:
    """A short line with its marker, for the legend."""
    figure = Figure(figsize=(0.42, 0.16))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 1), ylim=(-1, 1))
    axes.axis("off")
    axes.plot([0, 0.5, 1], [0, 0, 0], **look, markevery=[1])
    return Image(_svg(figure), look["label"])


def _svg(figure: Figure) -> str:
    """The figure as a data URI."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata=NO_METADATA)
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"


def _measure(claim: Mapping[str, Any]) -> str:
    return Measure(claim["evaluator"], claim["setting"], claim["layer"]).title


def _points(claim: Mapping[str, Any]) -> tuple[float, float, float]:
    """The lower bound, the mean and the upper bound of a difference, in points; a single seed has no bounds."""
    low, mean, high = (claim["mean"] if claim[name] is None else claim[name] for name in ("low", "mean", "high"))
    return 100 * low, 100 * mean, 100 * high


def _mean(runs: Runs) -> list[tuple[float, float]]:
    """The mean where all seeds have a point, or where any has if there is no such x."""
    found: dict[float, list[float]] = {}
    for x, y in itertools.chain(*runs):
        found.setdefault(x, []).append(y)
    complete = {x: values for x, values in found.items() if len(values) == len(runs)}
    return [(x, float(np.mean(values))) for x, values in sorted((complete or found).items())]

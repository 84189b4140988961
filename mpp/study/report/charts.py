"""The figures of the report as SVG. Imports matplotlib."""

from __future__ import annotations

import base64
import io
import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator

Runs = list[list[tuple[float, float]]]
"""A curve for each seed: points (x, y), ascending in x."""
WIDTH = 4.0
"""Of a panel, in inches."""
INK, MUTED, RULE, BAND = "#101112", "#55585c", "#d9dadb", "#f2f3f4"
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mpp",
    "text.parse_math": False,
    "font.size": 11,
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


class Panel(Protocol):
    """One figure of a chart."""

    @property
    def title(self) -> str:
        """Its heading."""
        ...

    @property
    def height(self) -> float:
        """Inches."""
        ...

    @property
    def own_axis(self) -> bool:
        """Whether its axis is not that of its neighbours."""
        ...

    @property
    def shared(self) -> str:
        """The axis that neighbours share, `x` or `y`."""
        ...

    def draw(self, axes: Axes, looks: Looks, /) -> None:
        """Draw it."""

    def arms(self, looks: Looks, /) -> Iterable[str]:
        """The arms that are drawn."""
        ...

    def drawn_levels(self) -> list[tuple[str, str]]:
        """The name and the style of each horizontal line."""
        ...

    def description(self, looks: Looks, /) -> str:
        """What it shows in words."""
        ...


@dataclass(frozen=True)
class Lines:
    """A panel: the mean over the seeds of each arm, and each seed as a thin line; of categories as a small dot."""

    title: str
    x: str
    y: str
    curves: Mapping[str, Runs]
    """By arm."""
    constants: Mapping[str, float] = field(default_factory=dict)
    """Arms that x says nothing of, as horizontal lines, by arm."""
    levels: Mapping[str, float | None] = field(default_factory=dict)
    """One or two horizontal lines by name; None is left out."""
    log: bool = False
    """A logarithmic x axis, with a tick for each x where these are few and round."""
    categories: Sequence[str] = ()
    """Names of x = 0, 1, 2, …"""
    own_axis: bool = False
    """Its y is not that of its neighbours."""
    uneven: bool = False
    """A mean is of the seeds that are there, however many; else it is drawn where all seeds are."""

    height = 2.7  # inches
    shared = "y"

    def draw(self, axes: Axes, looks: Looks) -> None:
        """Draw it."""
        for arm, value in self.constants.items():
            axes.axhline(value, color=looks[arm].color, linestyle=looks[arm].linestyle, linewidth=1.2)
        for arm, runs in self.curves.items():
            self._curve(axes, runs, looks[arm], self._shift(arm))
        for name, line in self.drawn_levels():
            axes.axhline(self.levels[name] or 0.0, **_level(name, line))
        axes.set(xlabel=self.x, ylabel=self.y)
        values = sorted({x for runs in self.curves.values() for run in runs for x, _ in run})
        if self.categories:
            axes.set_xticks(range(len(self.categories)), [textwrap.fill(name, 12) for name in self.categories])
            axes.set_xlim(-0.5, len(self.categories) - 0.5)
            axes.grid(visible=False, axis="x")
            return
        if self.log:
            axes.set_xscale("log")
            if len(values) <= 5 and all(len(EngFormatter(sep="")(value)) <= 5 for value in values):
                axes.set_xticks(values)
            else:
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
            axes.minorticks_off()
        else:
            axes.locator_params(axis="x", nbins=5, integer=True)
        axes.xaxis.set_major_formatter(EngFormatter(sep="") if values[-1] >= 1000 else "{x:g}")

    def _shift(self, arm: str) -> float:
        """How far right of its category an arm is drawn, lest arms hide each other."""
        return 0.14 * ([*self.curves].index(arm) - (len(self.curves) - 1) / 2) if self.categories else 0.0

    def _curve(self, axes: Axes, runs: Runs, look: Look, shift: float) -> None:
        mean = [(x + shift, y) for x, y in _mean(runs, self.uneven)]
        for run in runs if len(runs) > 1 else ():
            if self.categories:
                axes.plot([x + shift for x, _ in run], [y for _, y in run], ".", color=look.color, alpha=0.45)
            else:
                axes.plot(*zip(*run, strict=True), color=look.color, linewidth=0.7, alpha=0.45)
        drawn = look._replace(linestyle="none") if self.categories else look
        axes.plot(*zip(*mean, strict=True), **drawn._asdict(), markevery=max(len(mean) // 8, 1))

    def arms(self, _: Looks) -> Iterable[str]:
        """The arms that are drawn."""
        return (*self.curves, *self.constants)

    def drawn_levels(self) -> list[tuple[str, str]]:
        """The name and the style of each horizontal line."""
        pairs = zip(self.levels.items(), ("--", ":"), strict=False)
        return [(name, line) for (name, value), line in pairs if value is not None]

    def description(self, looks: Looks) -> str:
        """The last points in words."""
        points = []
        for arm, runs in self.curves.items():
            x, y = _mean(runs, self.uneven)[-1]
            where = self.categories[int(x)] if self.categories else f"{x:,.4g}"
            points.append(f"{looks[arm].label} {y:.3g} at {where}")
        points += [f"{looks[arm].label} {value:.3g} throughout" for arm, value in self.constants.items()]
        return f"{self.y} against {self.x}. Last points: {'; '.join(points)}."


def draw(panels: Iterable[Panel], looks: Looks) -> Chart | None:
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


def _share(panels: Sequence[Panel], axes: Sequence[Axes]) -> None:
    """Give the axis that neighbouring panels share the same ends and ticks in all of them."""
    own = [each for panel, each in zip(panels, axes, strict=True) if not panel.own_axis]
    if not own:
        return
    shared = panels[0].shared
    ends = np.array([getattr(each, f"get_{shared}lim")() for each in own])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    ticks = [tick for tick in MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high]
    for each in own:
        each.set(**{f"{shared}ticks": ticks, f"{shared}lim": (low, high)})


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


def _mean(runs: Runs, uneven: bool) -> list[tuple[float, float]]:
    """The mean where all seeds have a point, or where any has: if `uneven`, or if there is no such x."""
    found: dict[float, list[float]] = {}
    for x, y in itertools.chain(*runs):
        found.setdefault(x, []).append(y)
    complete = {x: values for x, values in found.items() if len(values) == len(runs)}
    return [(x, float(np.mean(values))) for x, values in sorted((found if uneven else complete or found).items())]

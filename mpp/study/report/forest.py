"""Forests: differences of arms with their intervals. Imports matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from mpp.study.claims import REVERSE, SHOWN, signed
from mpp.study.report.charts import BAND, INK, Looks


class Difference(NamedTuple):
    """A claim with its row in a forest."""

    row: str
    arm: str
    """It gives the colour."""
    claim: Mapping[str, Any]
    """As JSON."""


@dataclass(frozen=True)
class Forest:
    """A panel: differences with their intervals against 0, in points; filled where they are shown."""

    title: str
    differences: Sequence[Difference]
    inside: bool = False
    """The names of the rows are above their intervals, not beside them."""

    own_axis = False
    shared = "x"

    @property
    def rows(self) -> list[str]:
        """Their names, from the top down."""
        return list(dict.fromkeys(each.row for each in self.differences))

    @property
    def height(self) -> float:
        """Inches."""
        arms = {each.arm for each in self.differences}
        return 0.7 + len(self.rows) * (0.3 + 0.17 * self._lines if self.inside else max(0.16 * len(arms) + 0.1, 0.4))

    @property
    def _lines(self) -> int:
        """Of the longest name of a row that is above its interval."""
        return max(_wrapped(row).count("\n") + 1 for row in self.rows)

    def draw(self, axes: Axes, looks: Looks) -> None:
        """Draw it."""
        rows, arms = self.rows, self.arms(looks)
        offsets = min(0.8 / len(arms), 0.3) * (np.arange(len(arms)) - (len(arms) - 1) / 2)
        for row in range(0, len(rows), 2):
            axes.axhspan(row - 0.5, row + 0.5, color=BAND, linewidth=0, zorder=0)
        axes.axvline(0, color=INK, linewidth=1, zorder=1)
        for each in self.differences:
            at = rows.index(each.row) + (0.32 if self.inside else offsets[arms.index(each.arm)])
            low, mean, high = _points(each.claim)
            face = looks[each.arm].color if each.claim["verdict"] in (SHOWN, REVERSE) else "white"
            axes.hlines(at, low, high, color=looks[each.arm].color, linewidth=1.7, zorder=2)
            axes.plot(mean, at, looks[each.arm].marker, color=looks[each.arm].color, markerfacecolor=face, zorder=3)
        axes.grid(visible=False, axis="y")
        axes.set(xlabel="difference in accuracy, points", xlim=self._limits())
        axes.set_ylim(len(rows) - 0.5, -0.5)
        if self.inside:
            axes.set_yticks([])
            for at, row in enumerate(rows):
                box = {"facecolor": BAND if at % 2 == 0 else "white", "edgecolor": "none", "pad": 1}
                axes.text(
                    0.01,
                    at - 0.44,
                    _wrapped(row),
                    transform=axes.get_yaxis_transform(),
                    va="top",
                    fontsize=10,
                    bbox=box,
                )
        else:
            axes.set_yticks(range(len(rows)), [row.replace(", ", ",\n") for row in rows])
        axes.xaxis.set_major_formatter(lambda value, _: signed(value, "g"))

    def arms(self, looks: Looks) -> list[str]:
        """The arms that are drawn, from the top down."""
        return [arm for arm in looks if any(arm == each.arm for each in self.differences)]

    def drawn_levels(self) -> list[tuple[str, str]]:
        """No horizontal lines."""
        return []

    def _limits(self) -> tuple[float, float]:
        """0, every mean, and all intervals; of many rows not the ends of those that are much wider than most."""
        lows, means, highs = np.transpose([_points(each.claim) for each in self.differences])
        ends = np.maximum(abs(lows), abs(highs))
        most = max(1.5 * np.quantile(ends, 0.75), 1.3 * abs(means).max()) or 1.0
        if self.inside:
            most = np.inf
        low, high = max(min(0.0, lows.min()), -most), min(max(0.0, highs.max()), most)
        return low - 0.05 * (high - low), high + 0.05 * (high - low)

    def description(self, _: Looks) -> str:
        """The differences in words."""
        return "; ".join(each.claim["text"] for each in self.differences)


def _wrapped(row: str) -> str:
    return "\n".join(textwrap.fill(line, 46) for line in row.splitlines())


def _points(claim: Mapping[str, Any]) -> tuple[float, float, float]:
    """The lower bound, the mean and the upper bound of a difference, in points; a single seed has no bounds."""
    low, mean, high = (claim["mean"] if claim[name] is None else claim[name] for name in ("low", "mean", "high"))
    return 100 * low, 100 * mean, 100 * high

"""The course of a run as pictures: loss, accuracy and speed against the images seen."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpp.files import replacing
from mpp.objective.base import Objective
from mpp.training.metrics_log import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Metrics = Sequence[Mapping[str, Any]]
BASELINES = {"histogram": "label frequencies", "neighbours": "visible neighbours", "chance": "equal odds"}
"""The baselines in words."""
LEVELS = (("#762a83", "--"), ("#00785a", "-."), ("#8c510a", ":"))
"""Colour and dash of each; none is a colour of the curves."""
LABEL = 0.2
"""The height of a baseline's label, as a share of the axis."""
FEW = 2
"""So many points are drawn without a line between them, which would look like a course."""
FILE = "loss.png"
"""In the run's folder."""


def loss_curve(
    metrics: Metrics, baselines: Mapping[str, float], *, headline: str, title: str, held_out: str = "held out"
) -> Figure:
    """Training and held-out loss, with the baselines as levels.

    Args:
        metrics: the lines of a `metrics.jsonl`.
        baselines: by name.
        headline: the score that the baselines are compared with.
        title: the headline in words, with its unit.
        held_out: what the validation images are called.
    """
    figure, axes = _figure(title)
    for name, label, style in ((headline, "training", "-"), (f"validation/{headline}", held_out, "o-")):
        _line(axes, metrics, name, style, label)
    highest = max(baselines.values(), default=0.0)
    for (name, value), (colour, dash) in zip(baselines.items(), itertools.cycle(LEVELS), strict=False):
        axes.axhline(value, linestyle=dash, color=colour, linewidth=1.4)
        # Beside the curves; of two levels that are close, one label is above and the other below.
        words = BASELINES.get(name, name).replace(" ", "\n")
        axes.annotate(
            f"{words}\n{value:.3f}", (1.01, value), xycoords=("axes fraction", "data"), color=colour, fontsize=9,
            va="bottom" if value == highest and len(baselines) > 1 else "top",
        )  # fmt: skip
    axes.legend(frameon=False)
    axes.margins(y=0.12)
    if baselines:  # the label below a level needs room above the numbers of the horizontal axis
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, min(baselines.values()) - LABEL * (high - low)), high)
    return figure


def curves(metrics: Metrics, names: Mapping[str, str], title: str) -> Figure | None:
    """Several values of the journal against the images seen; None if none of them is there.

    Args:
        metrics: the lines of a `metrics.jsonl`.
        names: of the values, with their labels.
        title: of the vertical axis, with its unit.
    """
    figure, axes = _figure(title)
    found = [_line(axes, metrics, name, "-", label) for name, label in names.items()]
    if sum(found) > 1:
        axes.legend(frameon=False)
    return figure if any(found) else None


def draw_loss(folder: Path, baselines: Mapping[str, float], objective: Objective, held_out: str = "held out") -> None:
    """Draw `loss.png` into a run's folder anew, from its `metrics.jsonl`."""
    title = with_unit(objective.headline_title, objective.unit)
    metrics, headline = read_metrics(folder / "metrics.jsonl"), objective.headline
    figure = loss_curve(metrics, baselines, headline=headline, title=title, held_out=held_out)
    save(figure, folder / FILE)


def with_unit(title: str, unit: str) -> str:
    """The title of an axis."""
    return f"{title}, {unit}" if unit else title


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, in one step."""
    with replacing(path) as draft:
        figure.savefig(draft, format="png", metadata={"Software": None})


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _figure(title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure  # late: it takes half a second

    figure = Figure(figsize=(5, 3), dpi=180, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel("images seen")
    axes.set_ylabel(title)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _line(axes: Axes, metrics: Metrics, name: str, style: str, label: str) -> bool:
    """Draw a value of the journal; whether there is any."""
    points = [(line["samples"], line[name]) for line in metrics if line.get(name) is not None]
    if points:
        style = "o" if len(points) <= FEW else style
        axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1.2, markersize=4)
    return bool(points)

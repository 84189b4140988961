"""The loss of a run as a picture."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from mpp.files import replacing


def write_loss(
    metrics: list[dict[str, Any]], baselines: dict[str, float], path: Path, *, headline: str, title: str
) -> None:
    """Draw the losses of a `metrics.jsonl`, those on held-out images and the baselines among them.

    Args:
        metrics: its lines.
        baselines: by name.
        path: of the picture.
        headline: the score that the baselines are compared with.
        title: the headline in words.
    """
    from matplotlib.figure import Figure  # late: it takes half a second

    names = (headline, f"validation/{headline}")
    figure = Figure(figsize=(6, 3.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    for name, label, style in zip(names, ("training", "held out"), ("-", "o-"), strict=True):
        points = [(line["samples"], line[name]) for line in metrics if line.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1.2, markersize=4)
    for (name, value), dash in zip(baselines.items(), itertools.cycle(("--", ":")), strict=False):
        axes.axhline(value, linestyle=dash, color="0.4", linewidth=1, label=name)
    axes.set_xlabel("images seen")
    axes.set_ylabel(title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with replacing(path) as draft:
        figure.savefig(draft, format="png", metadata={"Software": None})

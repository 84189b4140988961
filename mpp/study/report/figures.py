"""The figures of the report: which panels there are, and what each of them shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mpp.evaluation.controls import CONTROLS
from mpp.study.arms import MPP
from mpp.study.report import series
from mpp.study.report.charts import Charts, Panel
from mpp.study.report.palette import Key, key
from mpp.study.report.series import Curves, Unit
from mpp.study.report.tables import DEFAULT

SEEN = "images seen in pre-training"
ACCURACY = "accuracy, %"


@dataclass(frozen=True)
class Group:
    """Panels beside each other under one legend."""

    panels: Sequence[Panel]
    legend: Sequence[Key]


class Figures:
    """The figures of one page.

    Args:
        titles: of the arms.
    """

    def __init__(self, titles: Mapping[str, str]) -> None:
        self.titles, self._charts = titles, Charts(titles)

    def by_labels(self, table: dict[str, Any], chance: float | None) -> Group | None:
        """Accuracy against the number of labels: few-shot, and fine-tuned."""
        kinds = (
            ("Few-shot, frozen features", r"(\d+)-shot", "labelled images of each class"),
            ("Fine-tuned", r"fine-tuned, (\S+) % of labels", "labels used, %"),
        )
        panels = []
        for title, pattern, x in kinds:
            places = series.numbered(table, pattern)
            if len(places) > 1:
                panels.append(self._accuracy(title, series.along(places), x=x, chance=chance, log=True))
        return self._group(panels)

    def forest(self, claims: Sequence[dict[str, Any]]) -> Group | None:
        """Each claim of two arms with its interval: what is gained over each floor, and what is missing."""
        kinds: dict[str, list[tuple[dict[str, Any], str]]] = {}
        for claim in claims:
            if "mean" in claim and not claim["metric"].endswith(DEFAULT):
                title, arm = self._comparison(*claim["arms"])
                kinds.setdefault(title, []).append((claim, arm))
        first = sorted(kinds.items(), key=lambda item: not item[0].startswith("Supervised"))
        return self._group(self._charts.forest(title, *zip(*pairs, strict=True)) for title, pairs in first)

    def _comparison(self, lower: str, higher: str) -> tuple[str, str]:
        """The panel that a claim belongs to, and the arm that it is coloured by."""
        if higher == "supervised":
            return "Supervised − MPP", lower
        if lower in CONTROLS or lower in MPP:
            others = "controls" if lower in CONTROLS else "other MPP"
            return f"{self.titles.get(higher, higher)} − {others}", lower
        return f"MPP − {self.titles.get(lower, lower)}", higher

    def losses(self, units: Sequence[Unit]) -> Group | None:
        """Held-out loss during pre-training, a panel for each arm: their losses are not comparable."""
        panels = []
        for arm in self.titles:
            own = [unit for unit in units if unit["arm"] == arm]
            name = series.loss_name(arm, own)
            kind = "squared error" if arm == "full_patch" else "loss in nats"
            where = ", masked patches" if name.endswith("_mask") else ""
            found = self._by_arm(own, lambda unit, name=name: series.looks(unit, name))
            levels = series.baselines(own, arm)
            title = self.titles[arm]
            panels.append(self._charts.lines(title, found, x=SEEN, y=f"{kind}{where}", levels=levels))
        return self._group(panels)

    def in_training(self, units: Sequence[Unit], names: Sequence[str], *, compute: bool = False) -> Group | None:
        """Accuracies on upstream images during pre-training, a panel for each name."""
        x = "pre-training compute, FLOPs" if compute else SEEN
        levels = series.upstream_chance(units)
        return self._group(
            self._accuracy(
                series.look_title(name),
                self._by_arm(units, partial(series.looks, name=name, compute=compute, factor=100)),
                x=x,
                chance=levels,
            )
            for name in names
        )

    def tuning(self, units: Sequence[Unit], chance: float | None) -> Group | None:
        """Accuracy on the dev split while fine-tuning, a panel for each share of the labels."""
        panels = []
        for share in series.fractions(units):
            found = self._by_arm(units, partial(series.tuning, fraction=share))
            ends = [run[-1][0] for runs in found.values() for run in runs]
            log = bool(ends) and max(ends) > 3 * min(ends)
            title, x = f"{100 * float(share):g} % of the labels", "images seen in fine-tuning"
            panels.append(self._accuracy(title, found, x=x, chance=chance, log=log))
        return self._group(panels)

    def spent(self, units: Sequence[Unit], chance: float | None) -> Group | None:
        """Test accuracy after fine-tuning against everything that training took: images, and operations."""
        panels = []
        for share in series.fractions(units):
            for compute, x in ((False, "images seen in all training"), (True, "operations of all training, FLOPs")):
                found = self._by_arm(units, partial(series.spent, fraction=share, compute=compute))
                title = f"{100 * float(share):g} % of the labels"
                panels.append(self._accuracy(title, found, x=x, chance=chance))
        return self._group(panels)

    def depth(self, units: Sequence[Unit], chance: float | None) -> Group | None:
        """Accuracy on the dev split by block, a panel for each evaluator and pooling; poolings share their y axis."""
        names = {"few_shot": "few-shot", "knn": "kNN", "linear_probe": "linear probe"}
        found = {
            (evaluator, pool): self._by_arm(units, partial(series.depth, evaluator=evaluator, pool=pool))
            for evaluator, pool in series.depth_panels(units)
        }
        panels = []
        for (evaluator, pool), lines in found.items():
            alike = [runs for (other, _), arms in found.items() if other == evaluator for runs in arms.values()]
            values = [y for runs in alike for run in runs for _, y in run] + ([chance] if chance else [])
            room = 0.06 * ((max(values) - min(values)) or 1.0)
            title = f"{names.get(evaluator, evaluator)}, {series.pool_title(pool)}"
            limits = (min(values) - room, max(values) + room)
            panels.append(self._accuracy(title, lines, x="block", chance=chance, limits=limits))
        return self._group(panels)

    def axis(
        self,
        tables: Mapping[float, dict[str, Any]],
        metrics: Sequence[str],
        chance: float | None,
        x: str,
        categories: Sequence[str] = (),
    ) -> Group | None:
        """Accuracy over variants of the study, a panel for each metric, of the arms that have variants."""
        panels = []
        for metric in metrics:
            lines = series.along((place, table, metric) for place, table in tables.items())
            lines = {arm: runs for arm, runs in lines.items() if any(len(run) > 1 for run in runs)}
            panels.append(self._accuracy(metric, lines, x=x, chance=chance, log=True, categories=categories))
        return self._group(panels)

    def _accuracy(self, title: str, lines: Curves, *, x: str, chance: float | None, **more: Any) -> Panel | None:
        return self._charts.lines(title, lines, x=x, y=ACCURACY, levels={"chance": chance}, **more)

    def _by_arm(self, units: Sequence[Unit], points: Callable[[Unit], list[tuple[float, float]]]) -> Curves:
        return series.by_arm(units, self.titles, points)

    def _group(self, panels: Any) -> Group | None:
        kept = [panel for panel in panels if panel is not None]
        arms = {arm for panel in kept for arm in panel.arms}
        ordered = [*(arm for arm in self.titles if arm in arms), *sorted(arms - {*self.titles})]
        legend = [key(arm, self.titles.get(arm, arm)) for arm in ordered]
        return Group(kept, legend) if kept else None

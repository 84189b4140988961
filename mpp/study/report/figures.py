"""The figures of the report: which panels there are, and what each of them shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpp.study.claims import variant_title
from mpp.study.report.charts import Charts, Look, Panel, Runs
from mpp.study.results import Cells, Measure, Row, measures, select
from mpp.study.units import Variant

SEEN = "images seen in pre-training"
ACCURACY = "accuracy, %"
POOLS = {"token": "class token", "avg": "mean of patches", "both": "token and mean"}
Curves = dict[str, Runs]


@dataclass(frozen=True)
class Group:
    """Panels beside each other under one legend: the title and look of each arm."""

    panels: Sequence[Panel]
    legend: Sequence[tuple[str, Look]]


class Figures:
    """The figures of one variant of a study; every one is a query of its rows.

    Args:
        charts: of the page.
        arms: `title` and `role` of each arm.
        rows: of one variant.
        chance: downstream accuracy by guessing, per cent.
    """

    def __init__(
        self, charts: Charts, arms: Mapping[str, Mapping[str, str]], rows: Sequence[Row], chance: float | None
    ) -> None:
        self.charts, self.arms, self.rows, self.chance = charts, arms, rows, chance
        self.shares = sorted({row.setting or 0 for row in select(rows, evaluator="finetune", metric="accuracy")})

    def by_labels(self) -> Group | None:
        """Accuracy against the number of labels: few-shot, and fine-tuned."""
        few = self._curves(select(self.rows, evaluator="few_shot", layer="chosen", metric="accuracy"), _setting)
        tuned = self._curves(select(self.rows, evaluator="finetune", metric="accuracy"), lambda r: 100 * _setting(r))
        kinds = (("Few-shot, frozen features", few, "labelled images of each class"),
                 ("Fine-tuned", tuned, "labels used, %"))  # fmt: skip
        return self._group(
            self._accuracy(title, curves, x=x, log=True) for title, curves, x in kinds if _has_lines(curves)
        )

    def forest(self, claims: Sequence[dict[str, Any]]) -> Group | None:
        """Each claim of two arms with its interval: what is gained over each floor, and what is missing."""
        kinds: dict[str, list[tuple[dict[str, Any], str]]] = {}
        for claim in claims:
            if "mean" in claim and claim["layer"] != "default":
                title, arm = self._comparison(*claim["arms"])
                kinds.setdefault(title, []).append((claim, arm))
        return self._group(self.charts.forest(title, *zip(*pairs, strict=True)) for title, pairs in kinds.items())

    def _comparison(self, lower: str, higher: str) -> tuple[str, str]:
        """The panel of a claim, and the arm whose colour it has."""
        low, high = self.arms[lower], self.arms[higher]
        if low["role"] in ("random", "scratch"):
            return f"Self-supervised − {low['title']}", higher
        others = {"control": "controls", "self-supervised": "others"}.get(low["role"], low["title"])
        if high["role"] == "supervised":
            others = "self-supervised"
        return f"{high['title']} − {others}", lower

    def losses(self) -> Group | None:
        """Held-out loss during pre-training, a panel for each arm: their losses are not comparable."""
        panels = []
        for arm, about in self.arms.items():
            own = select(self.rows, arm=arm, evaluator="pretrain")
            masked = select(own, metric="validation_loss_mask")  # without kept patches, which leak their answer
            names = {"baseline_histogram": "label frequencies", "baseline_neighbours": "visible neighbours"}
            levels = {title: mean(row.value for row in select(own, metric=name)) for name, title in names.items()}
            curves = self._curves(masked or select(own, metric="validation_loss"), _samples, factor=1)
            y = "loss, masked patches" if masked else "loss"
            panels.append(self.charts.lines(about["title"], curves, x=SEEN, y=y, levels=levels))
        return self._group(panels)

    def in_training(self, *, compute: bool = False) -> Group | None:
        """Accuracies on upstream images during pre-training, a panel for each evaluator and pooling."""
        found = select(self.rows, metric="upstream_accuracy")
        cost = {(r.arm, r.seed): r.value for r in select(self.rows, metric="flops_per_image")}
        panels = []
        for evaluator, setting, pool in dict.fromkeys((r.evaluator, r.setting, r.pool) for r in found):
            here = select(found, evaluator=evaluator, setting=setting, pool=pool)
            at = (lambda r: cost.get((r.arm, r.seed), 0.0) * _samples(r)) if compute else _samples
            title = f"{Measure(evaluator, setting).title}, {POOLS.get(pool or '', pool)}"
            x = "pre-training compute, FLOPs" if compute else SEEN
            panels.append(self._accuracy(title, self._curves(here, at), x=x, chance=None))
        return self._group(panels)

    def tuning(self) -> Group | None:
        """Accuracy on the dev split while fine-tuning, where a search has one."""
        found = select(self.rows, evaluator="finetune", metric="dev_accuracy")
        return self._group(
            self._accuracy(_labels(share), self._curves(select(found, setting=share), _samples), x="images seen")
            for share in self.shares
        )

    def spent(self) -> Group | None:
        """Test accuracy after fine-tuning against the cost of all training, searches included."""
        panels = []
        for share in self.shares:
            for metric, x in (("images_seen", "images seen in all training"), ("flops", "FLOPs of all training")):
                total: dict[tuple[str, int], float] = {}
                for row in select(self.rows, metric=metric):
                    if row.evaluator == "pretrain" or row.setting == share:
                        total[row.arm, row.seed] = total.get((row.arm, row.seed), 0.0) + row.value
                found = select(self.rows, evaluator="finetune", setting=share, metric="accuracy")
                curves = self._curves(found, lambda r, total=total: total[r.arm, r.seed])
                panels.append(self._accuracy(_labels(share), curves, x=x))
        return self._group(panels)

    def depth(self) -> Group | None:
        """Accuracy on the dev split by block, a panel for each evaluator and pooling."""
        found = [row for row in select(self.rows, metric="dev_accuracy") if row.block is not None]
        panels = []
        for evaluator, pool in dict.fromkeys((row.evaluator, row.pool) for row in found):
            curves = self._curves(select(found, evaluator=evaluator, pool=pool), lambda r: float(r.block or 0))
            if _has_lines(curves):
                title = f"{evaluator.replace('_', ' ')}, {POOLS.get(pool or '', pool)}"
                panels.append(self._accuracy(title, curves, x="block"))
        return self._group(panels)

    def axis(self, variants: Sequence[tuple[float, Variant, Cells]], x: str, *, named: bool) -> Group | None:
        """Accuracy over variants of the study, a panel for each measure, of the arms that have variants."""
        panels = []
        known = dict.fromkeys(measure for _, _, cells in variants for measure in measures(cells))
        categories = [variant_title(v) or "the study's" for _, v, _ in variants] if named else []
        for measure in known:
            curves: Curves = {}
            for arm in self.arms:
                points: dict[int, list[tuple[float, float]]] = {}
                for place, _, cells in variants:
                    for seed, value in cells.get(arm, {}).get(measure, {}).items():
                        points.setdefault(seed, []).append((place, 100 * value))
                if any(len(run) > 1 for run in points.values()):
                    curves[arm] = list(points.values())
            panels.append(self._accuracy(measure.title, curves, x=x, log=True, categories=categories))
        return self._group(panels)

    def _curves(self, rows: Iterable[Row], x: Callable[[Row], float], factor: float = 100) -> Curves:
        """The points (x, value) by arm and seed."""
        found: dict[str, dict[int, list[tuple[float, float]]]] = {arm: {} for arm in self.arms}
        for row in rows:
            found[row.arm].setdefault(row.seed, []).append((x(row), factor * row.value))
        return {arm: [sorted(run) for run in seeds.values()] for arm, seeds in found.items() if seeds}

    def _accuracy(self, title: str, curves: Curves, *, x: str, **more: Any) -> Panel | None:
        levels = {"chance": more.pop("chance", self.chance)}
        return self.charts.lines(title, curves, x=x, y=ACCURACY, levels=levels, **more)

    def _group(self, panels: Iterable[Panel | None]) -> Group | None:
        kept = [panel for panel in panels if panel is not None]
        shown = {arm for panel in kept for arm in panel.arms}
        legend = [(about["title"], self.charts.looks[arm]) for arm, about in self.arms.items() if arm in shown]
        return Group(kept, legend) if kept else None


def _setting(row: Row) -> float:
    return row.setting or 0.0


def _samples(row: Row) -> float:
    return float(row.samples or 0)


def _labels(share: float) -> str:
    return f"{100 * share:g} % of the labels"


def _has_lines(curves: Curves) -> bool:
    return any(len(run) > 1 for runs in curves.values() for run in runs)


def mean(values: Iterable[float]) -> float | None:
    """The mean; None of nothing."""
    kept = list(values)
    return sum(kept) / len(kept) if kept else None

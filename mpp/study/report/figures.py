"""The figures of the report: which panels there are, and what each of them shows."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

from mpp.study.report.charts import Chart, Lines, Looks, Runs, draw
from mpp.study.report.forest import Difference, Forest
from mpp.study.results import Measure, Row, downstream, select
from mpp.study.units import Variant

SEEN, COMPUTE = "images seen in pre-training", "pre-training compute, FLOPs"
POOLS = {"token": "class token", "avg": "mean of patches", "both": "token and mean"}
AXES = {
    "length": "By length of pre-training",
    "images": "By number of pre-training images",
    "size": "By size of the encoder",
    "corruption": "By share of corrupted patches",
    "target": "By target",
}
"""The axes of a study, fields of `Variant`, and the headings of their sections."""
CATEGORIES = {"size": "size of the encoder", "corruption": "corrupted patches", "target": "target"}
"""Axes without numbers, and their labels."""
_title = attrgetter("measure.title")
X = Callable[[Row], float]


class Figures:
    """The figures of one direction of a study; every one is a query of the rows of the study."""

    def __init__(self, looks: Looks, arms: Mapping[str, Mapping[str, str]], rows: Sequence[Row], *, swapped: bool):
        self.looks, self.arms, self.swapped = looks, arms, swapped
        self.own = Variant(swapped)
        self.rows = select(rows, variant=self.own)
        self.variants = [row for row in rows if row.variant.swapped == swapped and row.variant != self.own]
        self.tuned = select(self.rows, evaluator="finetune", metric="accuracy")
        classes = select(self.rows, evaluator="evaluate", metric="classes")
        self.chance = 100 / classes[0].value if classes else None
        """Downstream accuracy by guessing, per cent."""

    def by_labels(self) -> Chart | None:
        """Accuracy against the number of labels: few-shot, and fine-tuned."""
        few_shot = select(self.rows, evaluator="few_shot", layer="chosen", metric="accuracy")
        of_class, of_all = "labelled images of each class", "labels used, %"
        panels = [
            *self._panels(few_shot, of_class, lambda r: r.setting or 0, lambda _: "Few-shot, frozen", log=True),
            *self._panels(self.tuned, of_all, lambda r: 100 * (r.setting or 0), lambda _: "Fine-tuned", log=True),
        ]
        return draw(filter(_has_lines, panels), self.looks)

    def primary(self, claims: Sequence[dict[str, Any]]) -> Chart | None:
        """The primary claims, each a row of one panel."""
        found = []
        for claim in claims:
            lower, higher = claim["arms"]
            arm = lower if self.arms[higher]["role"] == "supervised" else higher
            row = f"{self.arms[higher]['title']} − {self.arms[lower]['title']},\n{measure_of(claim).title}"
            found.append(Difference(row, arm, claim))
        return draw([Forest("Differences with their intervals", found, inside=True)] if found else [], self.looks)

    def forest(self, claims: Sequence[dict[str, Any]]) -> Chart | None:
        """Each claim with its interval: the gain over each floor, and the gap to supervised."""
        kinds: dict[str, list[Difference]] = {}
        for claim in claims:
            if claim["layer"] != "default":
                title, arm = self._comparison(*claim["arms"])
                kinds.setdefault(title, []).append(Difference(measure_of(claim).title, arm, claim))
        return draw((Forest(title, found) for title, found in kinds.items()), self.looks)

    def _comparison(self, lower: str, higher: str) -> tuple[str, str]:
        """The panel of a claim, and the arm whose colour it has."""
        low, high = self.arms[lower], self.arms[higher]
        if low["role"] in ("random", "scratch"):
            return f"Pre-trained − {low['title']}", higher
        others = {"control": "controls", "self-supervised": "others"}.get(low["role"], low["title"])
        if high["role"] == "supervised":
            others = "without labels"
        return f"{high['title']} − {others}", lower

    def losses(self) -> Chart | None:
        """Held-out loss during pre-training, a panel for each arm: their losses are not comparable."""
        panels = []
        for arm, about in self.arms.items():
            own = select(self.rows, arm=arm, evaluator="pretrain")
            masked = select(own, metric="validation_loss_mask")  # without kept patches, which leak their answer
            names = {"label frequencies": "baseline_histogram", "visible neighbours": "baseline_neighbours"}
            values = {title: [row.value for row in select(own, metric=name)] for title, name in names.items()}
            levels = {title: statistics.fmean(found) if found else None for title, found in values.items()}
            if curves := self._curves(masked or select(own, metric="validation_loss"), _samples, factor=1):
                y = "loss, masked patches" if masked else "loss"
                panels.append(Lines(about["title"], SEEN, y, curves, levels=levels, own_axis=True))
        return draw(panels, self.looks)

    def in_training(self, *, compute: bool = False) -> Chart | None:
        """Accuracies on upstream images during pre-training, a panel for each evaluator and pooling."""
        found = select(self.rows, metric="upstream_accuracy")
        cost = {(r.arm, r.seed): r.value for r in select(self.rows, metric="flops_per_image")}
        x = (lambda r: cost.get((r.arm, r.seed), 0.0) * _samples(r)) if compute else _samples
        return draw(self._panels(found, COMPUTE if compute else SEEN, x, _kind, chance=None), self.looks)

    def tuning(self) -> Chart | None:
        """Accuracy on the dev split while fine-tuning, where a search has one."""
        found = select(self.rows, evaluator="finetune", metric="dev_accuracy")
        return draw(self._panels(found, "images seen", _samples, _title), self.looks)

    def spent(self) -> Chart | None:
        """Test accuracy after fine-tuning against the cost of all training, searches included."""
        panels = []
        for metric, label in (("images_seen", "images seen in all training"), ("flops", "FLOPs of all training")):
            total = partial(_total, select(self.rows, metric=metric))
            panels += self._panels(self.tuned, label, total, _title)
        return draw(panels, self.looks)

    def depth(self) -> Chart | None:
        """Accuracy on the dev split by block, a panel for each evaluator and pooling."""
        found = [row for row in select(self.rows, metric="dev_accuracy") if row.block is not None]
        panels = self._panels(found, "block", lambda row: float(row.block or 0), _kind)
        return draw(filter(_has_lines, panels), self.looks)

    def along(self, axis: str) -> list[Row]:
        """The rows of the arms that vary along this axis alone, from the smallest variant to the largest."""
        varied = [row for row in self.variants if axes_of(row.variant) == (axis,)]
        arms = {row.arm for row in varied}
        found = [row for row in (*self.rows, *varied) if row.arm in arms]
        order = self._order(found, axis)
        return sorted(found, key=lambda row: order[row.variant])

    def crossed(self) -> list[Row]:
        """The rows of variants that depart along several axes."""
        return [row for row in self.variants if len(axes_of(row.variant)) > 1]

    def by(self, axis: str, *, compute: bool = False) -> Chart | None:
        """Accuracy along an axis, a panel for each measure; `compute` takes the FLOPs of pre-training as x."""
        rows = self.along(axis)
        if not rows:
            return None
        varied, others, trained = {row.arm for row in rows}, [], {r.arm for r in select(self.rows, metric="flops")
                                                                  if r.evaluator == "pretrain"}  # fmt: skip
        order, names, label = self._order(rows, axis), [], CATEGORIES.get(axis, "pre-training images")
        x: X = lambda row: order[row.variant]  # noqa: E731
        if axis in CATEGORIES:
            names = [_category(variant, axis) for variant in order]
        elif axis == "length":
            cost = self._cost("flops" if compute else "images_seen")
            x, label = lambda row: cost[row.arm, row.seed, row.variant], COMPUTE if compute else SEEN
            rows += [row for row in self.rows if row.arm in trained - varied]
            rows = [row for row in rows if (row.arm, row.seed, row.variant) in cost]
        if axis != "size":
            others = [row for row in self.rows if row.arm not in {each.arm for each in rows} and self._learns(row.arm)]
        found = [row for row in downstream(rows) if row.layer != "default"]
        constant = [row for row in downstream(others) if row.layer != "default"]
        panels = self._panels(found, label, x, _title, constant=constant, log=not names, categories=names,
                              uneven=True)  # fmt: skip
        return draw([panel for panel in panels if _has_lines(panel) or names], self.looks)

    def _learns(self, arm: str) -> bool:
        return self.arms[arm]["role"] != "control"

    def _cost(self, metric: str) -> dict[tuple[str, int, Variant], float]:
        """A cost of pre-training by arm, seed and variant."""
        found = select((*self.rows, *self.variants), evaluator="pretrain", metric=metric)
        return {(row.arm, row.seed, row.variant): row.value for row in found}

    def _order(self, rows: Iterable[Row], axis: str) -> dict[Variant, float]:
        """Where each variant is on its axis, in ascending order."""
        found = dict.fromkeys((row.variant for row in rows), 0.0)
        if axis == "length":
            return dict(sorted(((each, each.length or 1.0) for each in found), key=lambda pair: pair[1]))
        if axis in ("images", "size"):  # the images of the study itself, and the operations of an encoder
            for row in select(rows, metric="rows" if axis == "images" else "flops_per_image"):
                found[row.variant] = max(found[row.variant], row.value)
            found = dict(sorted(found.items(), key=lambda pair: pair[1]))
        elif axis == "corruption":
            found = dict(sorted(found.items(), key=lambda pair: pair[0].corruption or 0.0))
        return found if axis == "images" else {variant: float(rank) for rank, variant in enumerate(found)}

    def _panels(
        self, rows: Iterable[Row], label: str, x: X, title: Callable[[Row], str], constant: Sequence[Row] = (),
        **more: Any,
    ) -> list[Lines]:  # fmt: skip
        """Accuracy in per cent against x, a panel for each title."""
        levels = {"chance": more.pop("chance", self.chance)}
        groups: dict[str, list[Row]] = {}
        for row in rows:
            groups.setdefault(title(row), []).append(row)
        found = []
        for name, own in groups.items():
            flat: dict[str, list[float]] = {}
            for row in constant:
                if title(row) == name:
                    flat.setdefault(row.arm, []).append(100 * row.value)
            means = {arm: statistics.fmean(values) for arm, values in flat.items()}
            found.append(Lines(name, label, "accuracy, %", self._curves(own, x), means, levels, **more))
        return found

    def _curves(self, rows: Iterable[Row], x: X, factor: float = 100) -> dict[str, Runs]:
        """The points (x, value) by arm and seed."""
        found: dict[str, dict[int, list[tuple[float, float]]]] = {arm: {} for arm in self.arms}
        for row in rows:
            found[row.arm].setdefault(row.seed, []).append((x(row), factor * row.value))
        return {arm: [sorted(run) for run in seeds.values()] for arm, seeds in found.items() if seeds}


def measure_of(claim: Mapping[str, Any]) -> Measure:
    """What a claim is measured by."""
    return Measure(claim["evaluator"], claim["setting"], claim["layer"])


def axes_of(variant: Variant) -> tuple[str, ...]:
    """The axes along which a variant departs from the study's own settings."""
    return tuple(axis for axis in AXES if getattr(variant, axis) is not None)


def _category(variant: Variant, axis: str) -> str:
    """A value of an axis without numbers."""
    if axis == "corruption" and variant.corruption is not None:
        return f"{100 * variant.corruption:g} %"
    return getattr(variant, axis) or "as in the recipe"


def _samples(row: Row) -> float:
    return float(row.samples or 0)


def _kind(row: Row) -> str:
    return f"{_title(row)}, {POOLS.get(row.pool or '', row.pool)}"


def _total(costs: Sequence[Row], tuned: Row) -> float:
    """The costs of a unit's pre-training, and of its fine-tuning and search on as many labels."""
    own = select(costs, arm=tuned.arm, seed=tuned.seed)
    return sum(cost.value for cost in own if cost.evaluator == "pretrain" or cost.setting == tuned.setting)


def _has_lines(panel: Lines) -> bool:
    return any(len(run) > 1 for runs in panel.curves.values() for run in runs)

"""The figures of the report: which panels there are, and what each of them shows."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

from mpp.study.claims import variant_title
from mpp.study.report.charts import Chart, Forest, Lines, Looks, Runs, draw
from mpp.study.results import Row, downstream, select
from mpp.study.units import Variant

SEEN = "images seen in pre-training"
POOLS = {"token": "class token", "avg": "mean of patches", "both": "token and mean"}
_title = attrgetter("measure.title")
X = Callable[[Row], float]


class Figures:
    """The figures of one direction of a study; every one is a query of the rows of the study."""

    def __init__(self, looks: Looks, arms: Mapping[str, Mapping[str, str]], rows: Sequence[Row], *, swapped: bool):
        self.looks, self.arms, self.swapped = looks, arms, swapped
        own = Variant(swapped)
        self.rows = select(rows, variant=own)
        self.variants = [row for row in rows if row.variant.swapped == swapped and row.variant != own]
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

    def forest(self, claims: Sequence[dict[str, Any]]) -> Chart | None:
        """Each claim of two arms with its interval: the gain over each floor, and the gap to supervised."""
        kinds: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        for claim in claims:
            if "mean" in claim and claim["layer"] != "default":
                title, arm = self._comparison(*claim["arms"])
                kinds.setdefault(title, []).append((arm, claim))
        return draw((Forest(title, found) for title, found in kinds.items()), self.looks)

    def _comparison(self, lower: str, higher: str) -> tuple[str, str]:
        """The panel of a claim, and the arm whose colour it has."""
        low, high = self.arms[lower], self.arms[higher]
        if low["role"] in ("random", "scratch"):
            return f"Self-supervised − {low['title']}", higher
        others = {"control": "controls", "self-supervised": "others"}.get(low["role"], low["title"])
        if high["role"] == "supervised":
            others = "self-supervised"
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
                panels.append(Lines(about["title"], SEEN, y, curves, levels, own_axis=True))
        return draw(panels, self.looks)

    def in_training(self, *, compute: bool = False) -> Chart | None:
        """Accuracies on upstream images during pre-training, a panel for each evaluator and pooling."""
        found = select(self.rows, metric="upstream_accuracy")
        cost = {(r.arm, r.seed): r.value for r in select(self.rows, metric="flops_per_image")}
        x = (lambda r: cost.get((r.arm, r.seed), 0.0) * _samples(r)) if compute else _samples
        label = "pre-training compute, FLOPs" if compute else SEEN
        return draw(self._panels(found, label, x, _kind, chance=None), self.looks)

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
        """The rows of the arms that have variants by `images` or `size`, from the smallest variant to the largest."""
        varied = [row for row in self.variants if getattr(row, axis) is not None]
        arms = {row.arm for row in varied}
        found = [row for row in (*self.rows, *varied) if row.arm in arms]
        sizes = _sizes(found, axis)
        return sorted(found, key=lambda row: sizes[row.variant])

    def by(self, axis: str) -> Chart | None:
        """Accuracy by `images` or `size`, a panel for each measure."""
        rows = self.along(axis)
        sizes, names = _sizes(rows, axis), []
        if axis == "size":
            names = [variant_title(variant) or "as in the recipe" for variant in sizes]
            sizes = {variant: float(rank) for rank, variant in enumerate(sizes)}
        label = "size of the encoder" if names else "pre-training images"
        found = [row for row in downstream(rows) if row.layer != "default"]
        panels = self._panels(found, label, lambda row: sizes[row.variant], _title, log=True, categories=names)
        return draw(filter(_has_lines, panels), self.looks)

    def _panels(self, rows: Iterable[Row], label: str, x: X, title: Callable[[Row], str], **more: Any) -> list[Lines]:
        """Accuracy in per cent against x, a panel for each title."""
        levels = {"chance": more.pop("chance", self.chance)}
        groups: dict[str, list[Row]] = {}
        for row in rows:
            groups.setdefault(title(row), []).append(row)
        return [Lines(name, label, "accuracy, %", self._curves(own, x), levels, **more) for name, own in groups.items()]

    def _curves(self, rows: Iterable[Row], x: X, factor: float = 100) -> dict[str, Runs]:
        """The points (x, value) by arm and seed."""
        found: dict[str, dict[int, list[tuple[float, float]]]] = {arm: {} for arm in self.arms}
        for row in rows:
            found[row.arm].setdefault(row.seed, []).append((x(row), factor * row.value))
        return {arm: [sorted(run) for run in seeds.values()] for arm, seeds in found.items() if seeds}


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


def _sizes(rows: Iterable[Row], axis: str) -> dict[Variant, float]:
    """The number of pre-training images of each variant, or the operations of its encoder."""
    found = dict.fromkeys((row.variant for row in rows), 0.0)
    for row in select(rows, metric="rows" if axis == "images" else "flops_per_image"):
        found[row.variant] = max(found[row.variant], row.value)
    return found

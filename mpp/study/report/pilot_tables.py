"""The tables of a study's pilot: what it tried, what it chose, and what that cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mpp.study.pilot import JUDGES, Tried, ends_of
from mpp.study.report.figures import POOLS
from mpp.study.report.tables import CHOSEN, COSTS, NAMES, Arms, Line, Table, costs_of, table_of
from mpp.study.settings import Choice, PilotSettings


class Pilot:
    """The pilot of a study, from what `results.json` holds."""

    def __init__(self, results: Mapping[str, Any], tried: Sequence[Tried]) -> None:
        study = results["recipe"]["study"]
        self.arms: Arms = {arm: about for arm, about in results["arms"].items() if about["role"] != "control"}
        self.tried = [each for each in tried if each.arm in self.arms]
        self.settings = PilotSettings.model_validate(study["pilot"]) if study.get("pilot") else None
        self.choices = {arm: Choice.model_validate(choice) for arm, choice in study.get("choices", {}).items()}

    def __bool__(self) -> bool:
        return bool(self.choices or self.tried)

    @property
    def judge(self) -> str:
        """The evaluator of frozen features by which rates are chosen where nothing is fine-tuned."""
        evaluation = "evaluate" in {each.stage for each in self.tried}
        return " or ".join(NAMES[name] for name in JUDGES) if evaluation else ""

    def ends(self) -> list[str]:
        """The chosen rates that are at an end of the grid, in words, with their arms."""
        if self.settings is None:
            return []
        return [
            f"{self.arms[arm]['title']}: {words}"
            for arm, choice in self.choices.items() if arm in self.arms for words in ends_of(choice, self.settings)
        ]  # fmt: skip

    def choice_table(self) -> Table | None:
        """What was chosen for each arm."""
        fractions = list(dict.fromkeys(each for choice in self.choices.values() for each in choice.finetuning))
        lines = []
        for arm, choice in self.choices.items():
            if arm not in self.arms:
                continue
            trained = self.arms[arm]["role"] in ("self-supervised", "supervised")
            cells = [_rate(choice.lr) if trained else "–"]
            for fraction in fractions:
                tuning = choice.finetuning.get(fraction)
                pool = POOLS.get(tuning.pool or "", tuning.pool) if tuning is not None else None
                cells.append("–" if tuning is None else ", ".join(filter(None, (_rate(tuning.lr), pool))))
            lines.append(Line(self.arms[arm]["title"], cells, arm))
        columns = ["arm", "pre-training rate",
                   *(f"fine-tuning rate, {100 * float(each):g} % of labels" for each in fractions)]  # fmt: skip
        return table_of("What the pilot chose", columns, [("", lines)])

    def grid_table(self) -> Table | None:
        """Accuracy on the reserved images of everything that was tried, what was chosen marked."""
        scored = [each for each in self.tried if each.accuracy is not None]
        columns = dict.fromkeys(_column(each) for each in sorted(scored, key=lambda each: each.tuning_lr or 0.0))
        groups = []
        for arm, about in self.arms.items():
            lines: dict[str, dict[str, str]] = {}
            for each in scored:
                if each.arm == arm:
                    lines.setdefault(_row(each), {})[_column(each)] = self._accuracy(each)
            found = [Line(row, [cells.get(column, "–") for column in columns], arm) for row, cells in lines.items()]
            groups.append((about["title"], found))
        return table_of("Accuracy on the reserved images, per cent", ["tried", *columns], groups)

    def _accuracy(self, each: Tried) -> str:
        choice = self.choices.get(each.arm)
        text = f"{100 * (each.accuracy or 0.0):.1f}"
        if choice is None or choice.lr != each.lr:
            return text
        tuning = choice.finetuning.get(f"{each.fraction:g}") if each.fraction is not None else None
        if each.fraction is not None and (tuning is None or (tuning.lr, tuning.pool) != (each.tuning_lr, each.pool)):
            return text
        return text + CHOSEN

    def cost_table(self) -> Table | None:
        """What the pilot of each arm cost."""
        lines = []
        for arm, about in self.arms.items():
            own = [each for each in self.tried if each.arm == arm]
            trainings = [each for each in own if each.stage != "evaluate"]
            if own:
                lines.append(Line(about["title"], [f"{len(trainings)}", *costs_of(own)], arm))
        if self.tried:
            count = sum(each.stage != "evaluate" for each in self.tried)
            lines.append(Line("all arms", [f"{count}", *costs_of(self.tried)]))
        return table_of(
            "What the pilot cost", ["arm", "trainings", *(name for name, _ in COSTS.values())], [("", lines)]
        )


def _rate(lr: float | None) -> str:
    return "the recipe's" if lr is None else f"{lr:g}"


def _row(each: Tried) -> str:
    """The pre-training and the labels of a try."""
    parts = [f"pre-training rate {each.lr:g}"] if each.lr is not None else []
    parts += [f"{100 * each.fraction:g} % of labels"] if each.fraction is not None else []
    return ", ".join(parts) or "frozen features"


def _column(each: Tried) -> str:
    """The fine-tuning of a try."""
    parts = [f"rate {each.tuning_lr:g}"] if each.tuning_lr is not None else []
    parts += [POOLS.get(each.pool, each.pool)] if each.pool is not None else []
    return "fine-tuned: " + ", ".join(parts) if parts else "accuracy"

"""The results of a study: one long typed table, from which everything on the page is a query."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mpp.commands.search import Candidate
from mpp.evaluation.settings import InTrainingSettings
from mpp.study.units import Recipes, Unit, Variant
from mpp.training.checkpoint import Checkpoints
from mpp.training.metrics_log import read_metrics


class Row(NamedTuple):
    """One measured number."""

    arm: str
    seed: int
    direction: str
    """`forward`, or `swapped`: upstream and downstream exchanged."""
    images: int | None
    """Pre-training images where not all are used."""
    size: str | None
    """Another encoder of `study.sizes`."""
    evaluator: str
    """`few_shot`, `knn`, `linear_probe`, `finetune`; `search` (its cost), `pretrain`, `evaluate` (its data)."""
    setting: float | None
    """Shots, k, or the share of the labels."""
    block: int | None
    pool: str | None
    layer: str | None
    """`chosen`: the layer that the dev split chose; `default`: the encoder's own last feature."""
    samples: int | None
    """Images that training had seen at that time; None at the end."""
    metric: str
    """`accuracy` on the downstream test images; `dev_accuracy` on a dev split of the downstream training images;
    `upstream_accuracy` on upstream images during pre-training; `validation_loss`, baselines, `flops`, …"""
    value: float

    @property
    def variant(self) -> Variant:
        """How its unit departs from the study's own settings."""
        return Variant(self.direction == "swapped", self.images, self.size)

    @property
    def measure(self) -> Measure:
        """What it is an accuracy of."""
        return Measure(self.evaluator, self.setting, self.layer)


class Measure(NamedTuple):
    """A kind of accuracy on the downstream test images."""

    evaluator: str
    setting: float | None = None
    layer: str | None = None

    @property
    def title(self) -> str:
        """For people; at the default layer it is the same."""
        match self.evaluator:
            case "few_shot" if self.setting is not None:
                return f"{self.setting:g}-shot"
            case "finetune":
                return f"fine-tuned, {100 * (self.setting or 0):g} % of labels"
            case "knn":
                return "kNN"
            case _:
                return self.evaluator.replace("_", " ")


Cells = dict[str, dict[Measure, dict[int, float]]]
"""Accuracies by arm, measure and seed."""


def select(rows: Iterable[Row], **where: Any) -> list[Row]:
    """The rows whose fields (or `variant`) have these values."""
    return [row for row in rows if all(getattr(row, name) == value for name, value in where.items())]


def downstream(rows: Iterable[Row], **where: Any) -> list[Row]:
    """The downstream accuracies; of several k of kNN the first alone, by which its layer was chosen."""
    found = select(rows, metric="accuracy", **where)
    k = next((row.setting for row in found if row.evaluator == "knn"), None)
    return [row for row in found if row.evaluator != "knn" or row.setting == k]


def accuracies(rows: Iterable[Row], variant: Variant) -> Cells:
    """Every downstream accuracy of a variant."""
    cells: Cells = {}
    for row in downstream(rows, variant=variant):
        cells.setdefault(row.arm, {}).setdefault(row.measure, {})[row.seed] = row.value
    return cells


def measures(cells: Cells, layer: str = "chosen") -> list[Measure]:
    """All measures of a table in their order: frozen features at this layer, and (with `chosen`) fine-tuning."""
    found = dict.fromkeys(measure for by_measure in cells.values() for measure in by_measure)
    order = ("few_shot", "knn", "linear_probe", "finetune")
    kept = [m for m in found if m.layer == layer or (m.layer is None and layer == "chosen")]
    return sorted(kept, key=lambda m: (order.index(m.evaluator), m.setting or 0))


def unit_rows(unit: Unit, recipes: Recipes, home: Path) -> list[Row]:
    """All numbers of a finished unit, from the files in its folder."""
    found = [
        *(_pretraining(recipes, home / "pretrain") if recipes.pretrain is not None else ()),
        *(_evaluation(json.loads((home / "evaluation" / "results.json").read_text())) if recipes.evaluate else ()),
        *(row for share in recipes.finetune for row in _finetuning(home / f"finetune-{share}", float(share))),
    ]
    swapped, images, size = unit.variant
    own = {"arm": unit.arm, "seed": unit.seed, "direction": "swapped" if swapped else "forward"}
    rows = [Row(**{**EMPTY, **own, "images": images, "size": size, **each}) for each in found]
    return [row for row in rows if math.isfinite(row.value)]


EMPTY: dict[str, Any] = dict.fromkeys(Row._fields)
Part = dict[str, Any]
"""The fields of a row that its unit does not say."""


def _pretraining(recipes: Recipes, folder: Path) -> Iterator[Part]:
    assert recipes.pretrain is not None
    checkpoint = Checkpoints(folder / "checkpoints", 2).newest(print)
    assert checkpoint is not None
    state, images = checkpoint.state, checkpoint.step * recipes.pretrain.training.batch_size
    numbers = {"images_seen": images, "flops_per_image": state["flops_per_image"],
               "flops": images * state["flops_per_image"], "seconds": state["progress"]["seconds"],
               "rows": state["data"]["rows"]}  # fmt: skip
    numbers |= {f"baseline_{name}": value for name, value in state["baselines"].items()}
    yield from ({"evaluator": "pretrain", "metric": name, "value": float(value)} for name, value in numbers.items())
    known = _in_training(recipes.pretrain.evaluation)
    for entry in read_metrics(folder / "metrics.jsonl"):
        for name, value in entry.items():
            measured = known.get(name) or {"evaluator": "pretrain", "metric": name.replace("/", "_")}
            if isinstance(value, int | float) and (name in known or name.startswith("validation/")):
                yield {**measured, "samples": entry["samples"], "value": float(value)}


def _in_training(settings: InTrainingSettings) -> dict[str, Part]:
    """What is measured during pre-training, by its name in the metrics log."""
    counts = {"few_shot": settings.shots, "knn": settings.k}
    return {
        f"evaluation/{name}_{count}_{pool}": {
            "evaluator": name, "setting": count, "pool": pool, "metric": "upstream_accuracy"
        }
        for name in settings.evaluators for count in counts[name] for pool in ("token", "avg")
    }  # fmt: skip


def _evaluation(found: dict[str, Any]) -> Iterator[Part]:
    for name in ("train_images", "test_images", "classes"):
        yield {"evaluator": "evaluate", "metric": name, "value": float(found[name])}
    for evaluator, entry in found["scores"].items():
        for at in entry["by_depth"]:
            yield {"evaluator": evaluator, "metric": "dev_accuracy", "block": at["block"], "pool": at["pool"],
                   "value": at["accuracy"]}  # fmt: skip
        for layer, score in (("chosen", entry["headline"]), ("default", entry["default"])):
            where = {"evaluator": evaluator, "layer": layer, "block": score["block"], "pool": score["pool"]}
            for shots, drawn in score.get("shots", {}).items():
                yield {**where, "setting": int(shots), "metric": "accuracy", "value": drawn["mean"]}
                yield {**where, "setting": int(shots), "metric": "std_over_draws", "value": drawn["std"]}
            for k, accuracy in score.get("k", {}).items():
                yield {**where, "setting": int(k), "metric": "accuracy", "value": accuracy}
            if "c" in score:
                end = {"smallest": -1.0, "largest": 1.0}.get(score["grid_end"], 0.0)
                numbers = {"accuracy": score["accuracy"], "c": score["c"], "at_grid_end": end,
                           "converged": float(score["converged"])}  # fmt: skip
                yield from ({**where, "metric": name, "value": value} for name, value in numbers.items())


def _finetuning(folder: Path, share: float) -> Iterator[Part]:
    """The numbers of a fine-tuning; the curve on the dev split is that of the search's chosen run."""
    results = json.loads((folder / "results.json").read_text())
    where = {"evaluator": "finetune", "setting": share}
    numbers = {"accuracy": results["test"]["accuracy"], "lr": results["chosen"]["lr"]}
    numbers |= {name: results[name] for name in ("train_images", "images_seen", "flops", "seconds")}
    yield from ({**where, "metric": name, "value": float(value)} for name, value in numbers.items())
    logs = {run.name: run / "metrics.jsonl" for run in sorted((folder / "search").glob("*/"))}
    runs = {name: read_metrics(log) if log.is_file() else [] for name, log in logs.items()}  # one may diverge at once
    if runs:
        images = sum(entries[-1]["samples"] for entries in runs.values() if entries)
        seconds = sum(max((e.get("seconds", 0.0) for e in entries), default=0.0) for entries in runs.values())
        cost = {"images_seen": images, "seconds": seconds, "runs": len(runs),
                "flops": images * results["flops"] / max(results["images_seen"], 1)}  # fmt: skip
        yield from ({"evaluator": "search", "setting": share, "metric": n, "value": float(v)} for n, v in cost.items())
        for entry in runs[str(Candidate(**results["chosen"]))]:
            if "validation/accuracy" in entry:
                yield {**where, "metric": "dev_accuracy", "samples": entry["samples"],
                       "value": entry["validation/accuracy"]}  # fmt: skip


def read(rows: Iterable[Sequence[Any]]) -> list[Row]:
    """Rows from JSON."""
    return [Row(*values) for values in rows]

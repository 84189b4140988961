"""The results of a study: one long typed table, from which everything on the page is a query."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mpp.commands.search import Candidate
from mpp.evaluation.predictions import FILE, LABELS, Predictions, correctness, key_of, read_predictions
from mpp.evaluation.settings import InTrainingSettings
from mpp.recipe import PretrainRecipe
from mpp.study.unit_recipes import Recipes
from mpp.study.units import Unit, Variant
from mpp.training.checkpoint import Checkpoints
from mpp.training.metrics_log import read_metrics


class Row(NamedTuple):
    """One measured number."""

    arm: str
    seed: int
    direction: str = "forward"
    """`forward`, or `swapped`: upstream and downstream exchanged."""
    images: int | None = None
    """Pre-training images where not all are used."""
    size: str | None = None
    """Another encoder of `study.sizes`."""
    length: float | None = None
    """Of pre-training, in multiples of the recipe's."""
    corruption: float | None = None
    """Share of corrupted patches, where it is not the arm's own."""
    target: str | None = None
    """Another target of `study.targets`."""
    evaluator: str = ""
    """`few_shot`, `knn`, `linear_probe`, `finetune`; `search` (its cost), `pretrain`, `evaluate` (its data)."""
    setting: float | None = None
    """Shots, k, or the fraction of the labels."""
    block: int | None = None
    pool: str | None = None
    layer: str | None = None
    """`chosen`: the layer that the dev split chose; `default`: the encoder's own last feature."""
    samples: int | None = None
    """Images that training had seen at that time; None at the end."""
    metric: str = "accuracy"
    """`accuracy` on the downstream test images; `dev_accuracy` on a dev split of the downstream training images;
    `upstream_accuracy` on upstream images during pre-training; `validation_loss`, baselines, `flops`, …"""
    value: float = math.nan

    @property
    def variant(self) -> Variant:
        """How its unit departs from the study's own settings."""
        return Variant(self.direction == "swapped", self.images, self.size, self.length, self.corruption, self.target)

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
    def key(self) -> str:
        """The name of its predictions."""
        return key_of(*self)

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


class Evidence:
    """For every unit and measure, which test images it got right."""

    def __init__(self, predictions: Mapping[Unit, Predictions]) -> None:
        self._predictions = predictions
        first: dict[bool, Unit] = {}
        for unit, found in predictions.items():
            other = first.setdefault(unit.variant.swapped, unit) if found else unit
            if found and not torch.equal(found[LABELS], predictions[other][LABELS]):
                raise ValueError(f"{unit} and {other} were tested on other images: they cannot be compared")

    def of(self, arm: str, seed: int, variant: Variant, measure: Measure) -> NDArray[np.float64]:
        """For each test image the share of draws whose prediction is right: `(M,)`.

        Raises:
            ValueError: if the predictions are missing.
        """
        unit = Unit(arm, seed, variant)
        found = correctness(self._predictions[unit], measure.key)
        if found is None:
            raise ValueError(
                f"{unit} has no predictions of {measure.key}: it was run by an earlier version of this package; "
                "choose another output_dir"
            )
        return found


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
    """All numbers of a finished unit, from the files in its folder; those that are not finite are left out."""
    variant = unit.variant._asdict()
    direction = "swapped" if variant.pop("swapped") else "forward"
    own = Row(arm=unit.arm, seed=unit.seed, direction=direction, **variant)
    found: list[Row] = []
    if recipes.pretrain is not None:
        found += _pretraining(own._replace(evaluator="pretrain"), recipes.pretrain, home / "pretrain")
    if recipes.evaluate is not None:
        found += _evaluation(own, json.loads((home / "evaluation" / "results.json").read_text()))
    for tuning in recipes.finetune:
        found += _finetuning(own._replace(evaluator="finetune", setting=tuning.fraction), home / tuning.folder)
    return [row for row in found if math.isfinite(row.value)]


def time_of(seconds: float) -> dict[str, float]:
    """The time that a training of this process took, and that of its cores (or its GPU) together."""
    cores = 1 if torch.cuda.is_available() else torch.get_num_threads()
    return {"seconds": seconds, "core_seconds": seconds * cores}


def _numbers(own: Row, numbers: Mapping[str, float]) -> list[Row]:
    """A row for each metric."""
    return [own._replace(metric=name, value=float(value)) for name, value in numbers.items()]


def _pretraining(own: Row, recipe: PretrainRecipe, folder: Path) -> Iterator[Row]:
    checkpoint = Checkpoints(folder / "checkpoints", 2).newest(print)
    assert checkpoint is not None
    state, images = checkpoint.state, checkpoint.step * recipe.training.batch_size
    flops = state["flops_per_image"]
    cost = {"images_seen": images, "flops_per_image": flops, "flops": images * flops}
    seconds = state["progress"]["seconds"]
    yield from _numbers(own, {**cost, **time_of(seconds), "rows": state["data"]["rows"]})
    yield from _numbers(own, {f"baseline_{name}": value for name, value in state["baselines"].items()})
    evaluations = _in_training(own, recipe.evaluation)
    for entry in read_metrics(folder / "metrics.jsonl"):
        for name, value in entry.items():
            if isinstance(value, int | float) and (name in evaluations or name.startswith("validation/")):
                row = evaluations.get(name, own._replace(metric=name.replace("/", "_")))
                yield row._replace(samples=entry["samples"], value=float(value))


def _in_training(own: Row, settings: InTrainingSettings) -> dict[str, Row]:
    """The evaluations during pre-training, by their names in the metrics log."""
    counts = {"few_shot": settings.shots, "knn": settings.k}
    return {
        f"evaluation/{name}_{count}_{pool}": own._replace(
            evaluator=name, setting=count, pool=pool, metric="upstream_accuracy"
        )
        for name in settings.evaluators for count in counts[name] for pool in ("token", "avg")
    }  # fmt: skip


def _evaluation(own: Row, found: dict[str, Any]) -> Iterator[Row]:
    numbers = {name: found[name] for name in ("train_images", "test_images", "classes")}
    yield from _numbers(own._replace(evaluator="evaluate"), numbers)
    for evaluator, entry in found["scores"].items():
        scored = own._replace(evaluator=evaluator, metric="accuracy")
        for at in entry["by_depth"]:
            yield scored._replace(metric="dev_accuracy", block=at["block"], pool=at["pool"], value=at["accuracy"])
        for layer, score in (("chosen", entry["headline"]), ("default", entry["default"])):
            at = scored._replace(layer=layer, block=score["block"], pool=score["pool"])
            for shots, drawn in score.get("shots", {}).items():
                numbers = {"accuracy": drawn["mean"], "std_over_draws": drawn["std"]}
                yield from _numbers(at._replace(setting=int(shots)), numbers)
            for k, accuracy in score.get("k", {}).items():
                yield at._replace(setting=int(k), value=accuracy)
            if "c" in score:
                end = {"smallest": -1, "largest": 1}.get(score["grid_end"], 0)
                numbers = {name: score[name] for name in ("accuracy", "c", "converged")}
                yield from _numbers(at, {**numbers, "at_grid_end": end})


def _finetuning(own: Row, folder: Path) -> Iterator[Row]:
    """The numbers of a fine-tuning; the curve on the dev split is that of the search's chosen run."""
    results = json.loads((folder / "results.json").read_text())
    yield from _numbers(own, {"accuracy": results["test"]["accuracy"], "lr": results["chosen"]["lr"]})
    yield from _numbers(own, {name: results[name] for name in ("train_images", "images_seen", "flops")})
    yield from _numbers(own, time_of(results["seconds"]))
    logs = {run.name: run / "metrics.jsonl" for run in sorted((folder / "search").glob("*/"))}
    runs = {name: read_metrics(log) if log.is_file() else [] for name, log in logs.items()}  # one may diverge at once
    if runs:
        images = sum(entries[-1]["samples"] for entries in runs.values() if entries)
        seconds = sum(max((e.get("seconds", 0.0) for e in entries), default=0.0) for entries in runs.values())
        flops = images * results["flops"] / max(results["images_seen"], 1)
        cost = {"images_seen": images, **time_of(seconds), "runs": len(runs), "flops": flops}
        yield from _numbers(own._replace(evaluator="search"), cost)
        for entry in runs[str(Candidate(**results["chosen"]))]:
            if "validation/accuracy" in entry:
                accuracy = entry["validation/accuracy"]
                yield own._replace(metric="dev_accuracy", samples=entry["samples"], value=accuracy)


def unit_predictions(recipes: Recipes, home: Path) -> Predictions:
    """What a finished unit predicted of each test image, all its evaluators together."""
    folders = [home / "evaluation"] if recipes.evaluate is not None else []
    found: Predictions = {}
    for folder in (*folders, *(home / tuning.folder for tuning in recipes.finetune)):
        new = read_predictions(folder / FILE)
        assert not found or torch.equal(found[LABELS], new[LABELS])
        found |= new
    return found


def read(rows: Iterable[Sequence[Any]]) -> list[Row]:
    """Rows from JSON."""
    return [Row(*values) for values in rows]

"""Scores of features: each evaluator at the default place, by depth, and where a dev split of train says it is best."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mpp.data.sampler import Numbers
from mpp.encoder.export import weights_digest
from mpp.evaluation.features import Features, Place
from mpp.evaluation.few_shot import few_shot
from mpp.evaluation.knn import nearest_neighbours
from mpp.evaluation.logistic_regression import linear_probe, regression
from mpp.evaluation.settings import FewShotSettings, NeighbourSettings, ProbeSettings
from mpp.files import write_text

EvaluatorSettings = FewShotSettings | NeighbourSettings | ProbeSettings
NAMES: dict[type, str] = {FewShotSettings: "few_shot", NeighbourSettings: "knn", ProbeSettings: "linear_probe"}
Score = Callable[[Tensor, Tensor, Tensor, Tensor], dict[str, Any]]
"""Train features and labels, test features and labels → JSON with `accuracy`, the headline in [0, 1]."""


def evaluator(settings: EvaluatorSettings) -> Score:
    """The working evaluator of some settings."""

    def by_few_shot(*data: Tensor) -> dict[str, Any]:
        assert isinstance(settings, FewShotSettings)
        scores = few_shot(*data, shots=settings.shots, seeds=settings.seeds, l2=settings.l2)
        shots = {
            str(count): {"mean": score.mean, "std": score.std, "per_seed": list(score.per_seed)}
            for count, score in scores.items()
        }
        return {"accuracy": sum(score.mean for score in scores.values()) / len(scores), "shots": shots}

    def by_neighbours(*data: Tensor) -> dict[str, Any]:
        assert isinstance(settings, NeighbourSettings)
        found = nearest_neighbours(*data, k=settings.k, temperature=settings.temperature)
        return {"accuracy": found[settings.k[0]], "k": {str(count): accuracy for count, accuracy in found.items()}}

    def by_probe(*data: Tensor) -> dict[str, Any]:
        assert isinstance(settings, ProbeSettings)
        probe = linear_probe(*data, grid=settings.grid)
        dev = {f"{c:g}": value for c, value in probe.dev.items()}
        told = {"c": probe.c, "grid_end": probe.grid_end, "converged": probe.converged}
        return {"accuracy": probe.accuracy, **told, "dev": dev}

    return {FewShotSettings: by_few_shot, NeighbourSettings: by_neighbours, ProbeSettings: by_probe}[type(settings)]


def scores(
    evaluators: Sequence[EvaluatorSettings],
    train: Features,
    test: Features,
    default: Place,
    *,
    dev: tuple[Any, Any] | None,
    by_depth: Sequence[str],
    pieces: Path | None = None,
) -> dict[str, Any]:
    """What each evaluator finds.

    Args:
        evaluators: the settings of each.
        train: features of all training images.
        test: features of the test images.
        default: the place that is always reported.
        dev: rows of train to fit on and rows to choose by; None chooses nothing.
        by_depth: names of the evaluators that are run at every place on the dev split, and choose by themselves;
            the others take the place that the last of these chose.
        pieces: a folder that keeps what each evaluator found at each place, so that a call that was cut off goes on.

    Returns:
        By evaluator: `default` and `headline`, each with `block`, `pool`, `accuracy` and what else it says; and
        `by_depth`, the accuracies on the dev split.
    """
    found: dict[str, Any] = {}
    chosen = default
    order = {name: place for place, name in enumerate(by_depth)}
    for settings in sorted(evaluators, key=lambda settings: order.get(NAMES[type(settings)], len(order))):
        name, at = NAMES[type(settings)], partial(_at, settings, pieces)
        entry: dict[str, Any] = {"by_depth": []}
        if name in by_depth and dev is not None and len(train.values) > 1:
            fitted, held = (train.take(rows) for rows in dev)
            for place in train.values:
                here = at(fitted, held, place)
                entry["by_depth"].append({**place._asdict(), "accuracy": here["accuracy"]})
            best = max(entry["by_depth"], key=lambda at: (at["accuracy"], at["block"]))
            chosen = Place(best["block"], best["pool"])
        entry["default"] = at(train, test, default)
        entry["headline"] = entry["default"] if chosen == default else at(train, test, chosen)
        found[name] = entry
    return {NAMES[type(settings)]: found[NAMES[type(settings)]] for settings in evaluators}


def _at(
    settings: EvaluatorSettings, pieces: Path | None, train: Features, test: Features, place: Place
) -> dict[str, Any]:
    given = (train.values[place], train.labels, test.values[place], test.labels)
    score = evaluator(settings)
    if pieces is None:
        return {**place._asdict(), **score(*given)}
    data = weights_digest({str(number): tensor for number, tensor in enumerate(given)})
    asked = f"{type(settings).__name__} {settings.model_dump_json()} {data}"
    path = pieces / f"{hashlib.sha256(asked.encode()).hexdigest()[:16]}.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        found = score(*given)
        pieces.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(found))
    return {**place._asdict(), **found}


def check_feasible(
    evaluators: Sequence[EvaluatorSettings],
    labels: Numbers,
    dev: tuple[Numbers, Numbers] | None,
    by_depth: Sequence[str],
) -> None:
    """Refuse before features are extracted what they would be too few for.

    Args:
        evaluators: the settings of each.
        labels: int64 `(n,)`, of the training images.
        dev: rows of these to fit on and rows to choose by; None if nothing is chosen.
        by_depth: names of the evaluators that are run on these too.

    Raises:
        ValueError: for a single class.
        SettingError: naming the setting and both numbers.
        RuntimeError: if scikit-learn is needed and not installed.
    """
    if len(np.unique(labels)) < 2:
        raise ValueError("all training images are of one class: there is nothing to tell apart")
    for settings in evaluators:
        apart = dev is not None and NAMES[type(settings)] in by_depth
        known = labels[dev[0]] if dev is not None and apart else labels
        counts = np.bincount(known)
        besides = ", what labels.dev holds out apart" if apart else ""
        if isinstance(settings, FewShotSettings) and max(settings.shots) > counts.min():
            said = f"class {counts.argmin()} has {counts.min()} images{besides}, fewer than {max(settings.shots)} shots"
            raise settings.error(shots=said)
        if isinstance(settings, NeighbourSettings) and max(settings.k) > len(known):
            said = f"there are {len(known)} training images{besides}, fewer than {max(settings.k)}"
            raise settings.error(k=said)
        if isinstance(settings, ProbeSettings):
            regression()

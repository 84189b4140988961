"""Evaluate frozen features: at the encoder's default layer, at every layer on a dev split, and at the best of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from mpp.data.sampler import Numbers
from mpp.encoder.export import weights_digest
from mpp.evaluation.arrays import checked
from mpp.evaluation.features import FeatureLayer, Features
from mpp.evaluation.few_shot import Score, few_shot_predictions
from mpp.evaluation.knn import neighbour_predictions
from mpp.evaluation.logistic_regression import linear_probe, require_solver
from mpp.evaluation.predictions import Predictions, compact, key_of
from mpp.evaluation.settings import FewShotSettings, NeighbourSettings, ProbeSettings
from mpp.files import replacing, write_text
from mpp.progress import DELAY, quiet
from mpp.settings import Settings

ONE_CLASS = "all training images are of one class: there is nothing to classify"
EvaluatorSettings = FewShotSettings | NeighbourSettings | ProbeSettings
Result = dict[str, Any]
"""JSON with `accuracy` in [0, 1], by which layers are compared, and more of each evaluator."""


class Options(NamedTuple):
    """What an evaluation depends on besides an evaluator's settings and the features."""

    seed: int = 0
    """Of the rows that the linear probe holds out to choose C."""
    centre: bool = False
    """Subtract the mean of train before kNN; for pixels, which are all positive."""
    patience: int | None = None
    """Of the linear probe's grid: see `linear_probe`."""
    device: torch.device = torch.device("cpu")
    """Of few-shot and kNN; logistic regression always runs on the CPU."""


def _run(
    settings: EvaluatorSettings, options: Options, data: Sequence[Tensor]
) -> tuple[Result, dict[float | None, Tensor]]:
    """One evaluator on train features and labels, and test features and labels; and what it predicts, by setting."""
    train, known, test, asked = (tensor.to(options.device) for tensor in data)
    if isinstance(settings, FewShotSettings):
        rows = checked(train, known, test, asked, torch.float64)
        drawn = few_shot_predictions(rows, settings.shots, settings.seeds, settings.l2)
        scores = {count: Score.of(each, rows.test_labels) for count, each in drawn.items()}
        shots = {
            str(count): {"mean": score.mean, "std": score.std, "per_seed": list(score.per_seed)}
            for count, score in scores.items()
        }
        accuracy = sum(score.mean for score in scores.values()) / len(scores)
        return {"accuracy": accuracy, "shots": shots}, {float(count): each for count, each in drawn.items()}
    if isinstance(settings, NeighbourSettings):
        rows = checked(train, known, test, asked, torch.float32)
        voted = neighbour_predictions(rows, settings.k, settings.temperature, options.centre)
        k = {str(count): int((each == rows.test_labels).sum()) / len(each) for count, each in voted.items()}
        return {"accuracy": k[str(settings.k[0])], "k": k}, {float(count): each for count, each in voted.items()}
    probe = linear_probe(train, known, test, asked, settings.grid, options.seed, options.patience)
    dev = {f"{c:g}": value for c, value in probe.dev.items()}
    result = {"accuracy": probe.accuracy, "c": probe.c, "grid_end": probe.grid_end, "converged": probe.converged,
              "dev": dev}  # fmt: skip
    return result, {None: probe.predicted}


def scores(
    evaluators: Sequence[EvaluatorSettings],
    train: Features,
    test: Features,
    default: FeatureLayer,
    *,
    dev: tuple[Any, Any] | None,
    by_depth: Sequence[str],
    options: Options,
    pieces: Path,
) -> tuple[dict[str, Any], Predictions]:
    """Run every evaluator.

    Args:
        evaluators: the settings of each.
        train, test: features of all training images, and of the test images.
        default: the layer that is always evaluated.
        dev: rows of train to fit on and rows to choose the layer by; None chooses nothing.
        by_depth: names of the evaluators that are run at every layer on the dev split, and choose their own best;
            the others take the layer that the last of these chose.
        options: seed, centring and device.
        pieces: a folder for finished results, so that an interrupted call resumes.

    Returns:
        By evaluator: `default` and `headline` (the chosen layer), each with `block`, `pool` and the evaluator's
        result on test; and `by_depth`, the accuracy of every layer on the dev split. And the predictions on test, at
        the default layer, and at the chosen one where it is another.
    """
    found: dict[str, Any] = {}
    predictions: Predictions = {}
    chosen = default
    order = {name: number for number, name in enumerate(by_depth)}
    for settings in sorted(evaluators, key=lambda settings: order.get(settings.name, len(order))):
        entry: dict[str, Any] = {"by_depth": []}
        if settings.name in by_depth and dev is not None and len(train.values) > 1:
            fitted, held = (train.take(rows) for rows in dev)
            grid = {"grid": (settings.depth_c,)} if isinstance(settings, ProbeSettings) else {}
            title = f"{settings.name.replace('_', ' ')}, layers"
            for layer in tqdm(train.values, desc=title, unit="layer", delay=DELAY, disable=quiet(), leave=False):
                here, _ = _evaluate(settings.model_copy(update=grid), options, pieces, fitted, held, layer)
                entry["by_depth"].append({**layer._asdict(), "accuracy": here["accuracy"]})
            best = max(entry["by_depth"], key=lambda at: (at["accuracy"], at["block"]))
            chosen = FeatureLayer(best["block"], best["pool"])
        for which, layer in (("default", default), ("headline", chosen)):
            entry[which], predicted = _evaluate(settings, options, pieces, train, test, layer)
            if which == "default" or layer != default:
                called = "default" if which == "default" else "chosen"
                predictions |= {key_of(settings.name, each, called): rows for each, rows in predicted.items()}
        found[settings.name] = entry
    return {settings.name: found[settings.name] for settings in evaluators}, predictions


def _evaluate(
    settings: EvaluatorSettings, options: Options, pieces: Path, train: Features, test: Features, layer: FeatureLayer
) -> tuple[Result, dict[float | None, Tensor]]:
    """One evaluator at one layer, or its result in `pieces` if there is one; and what it predicts, by its setting."""
    data = (train.values[layer], train.labels, test.values[layer], test.labels)
    digest = weights_digest({str(number): tensor for number, tensor in enumerate(data)})
    own = f"{options.seed} {options.centre} {options.patience}"
    key = f"{type(settings).__name__} {settings.model_dump_json()} {own} {digest}"
    path = pieces / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    try:
        found: Result = json.loads(path.read_text())
        predicted = load_file(path.with_suffix(".safetensors"))
    except (OSError, ValueError, SafetensorError):
        found, by_setting = _run(settings, options, data)
        classes = int(train.labels.max()) + 1
        predicted = {"" if name is None else f"{name:g}": compact(rows, classes) for name, rows in by_setting.items()}
        pieces.mkdir(parents=True, exist_ok=True)
        with replacing(path.with_suffix(".safetensors")) as draft:
            save_file(predicted, draft)
        write_text(path, json.dumps(found))
    return {**layer._asdict(), **found}, {float(name) if name else None: rows for name, rows in predicted.items()}


def check_feasible(
    evaluators: Sequence[EvaluatorSettings],
    labels: Numbers,
    dev: tuple[Numbers, Numbers] | None,
    by_depth: Sequence[str],
) -> None:
    """Check, before features are extracted, that each class has enough images, and that SciPy is installed.

    Arguments are as of `scores`. A ValueError for a single class, or a SettingError with both numbers.
    """
    if len(np.unique(labels)) < 2:
        raise ValueError(ONE_CLASS)
    for settings in evaluators:
        split = dev if settings.name in by_depth else None
        known, among = (labels, "") if split is None else (labels[split[0]], " without the dev split of labels.dev")
        if isinstance(settings, FewShotSettings):
            check_counts(settings, known, shots=settings.shots, among=among)
        elif isinstance(settings, NeighbourSettings):
            check_counts(settings, known, k=settings.k, among=among)
        else:
            require_solver()


def check_counts(
    settings: Settings, labels: Numbers, *, shots: Sequence[int] = (), k: Sequence[int] = (), among: str
) -> None:
    """Raise a SettingError if the images with these labels are too few for `shots` or `k`."""
    counts = np.bincount(labels)
    if shots and max(shots) > counts.min():
        message = f"class {counts.argmin()} has {counts.min()} images{among}, fewer than {max(shots)} shots"
        raise settings.error(shots=f"{message}; use fewer shots or more images")
    if k and max(k) > len(labels):
        raise settings.error(k=f"there are {len(labels)} training images{among}, fewer than {max(k)}")

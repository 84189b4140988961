"""Evaluate frozen features: at the encoder's default layer, at every layer on a dev split, and at the best of those."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mpp.data.sampler import Numbers
from mpp.encoder.export import weights_digest
from mpp.evaluation.features import FeatureLayer, Features
from mpp.evaluation.few_shot import few_shot
from mpp.evaluation.knn import nearest_neighbours
from mpp.evaluation.logistic_regression import linear_probe, regression
from mpp.evaluation.settings import FewShotSettings, NeighbourSettings, ProbeSettings
from mpp.files import write_text

EvaluatorSettings = FewShotSettings | NeighbourSettings | ProbeSettings
NAMES: dict[type, str] = {FewShotSettings: "few_shot", NeighbourSettings: "knn", ProbeSettings: "linear_probe"}
Result = dict[str, Any]
"""JSON with `accuracy` in [0, 1], the number that layers are compared by, and what else an evaluator reports."""


class Options(NamedTuple):
    """What an evaluation depends on besides an evaluator's settings and the features."""

    seed: int = 0
    """Decides which rows the linear probe holds out to choose C."""
    centre: bool = False
    """Subtract the mean of train before kNN; for pixels, which are all positive."""
    device: torch.device = torch.device("cpu")
    """Where few-shot and kNN are computed; logistic regression always runs on the CPU."""


def _few_shot(settings: FewShotSettings, options: Options, *data: Tensor) -> Result:
    found = few_shot(*data, shots=settings.shots, seeds=settings.seeds, l2=settings.l2)
    shots = {
        str(count): {"mean": score.mean, "std": score.std, "per_seed": list(score.per_seed)}
        for count, score in found.items()
    }
    return {"accuracy": sum(score.mean for score in found.values()) / len(found), "shots": shots}


def _knn(settings: NeighbourSettings, options: Options, *data: Tensor) -> Result:
    found = nearest_neighbours(*data, k=settings.k, temperature=settings.temperature, centre=options.centre)
    return {"accuracy": found[settings.k[0]], "k": {str(count): accuracy for count, accuracy in found.items()}}


def _linear_probe(settings: ProbeSettings, options: Options, *data: Tensor) -> Result:
    probe = linear_probe(*data, grid=settings.grid, seed=options.seed)
    dev = {f"{c:g}": value for c, value in probe.dev.items()}
    return {"accuracy": probe.accuracy, "c": probe.c, "grid_end": probe.grid_end, "converged": probe.converged,
            "dev": dev}  # fmt: skip


EVALUATORS: dict[type, Callable[..., Result]] = {
    FewShotSettings: _few_shot,
    NeighbourSettings: _knn,
    ProbeSettings: _linear_probe,
}


def scores(
    evaluators: Sequence[EvaluatorSettings],
    train: Features,
    test: Features,
    default: FeatureLayer,
    *,
    dev: tuple[Any, Any] | None,
    by_depth: Sequence[str],
    options: Options | None = None,
    pieces: Path | None = None,
) -> dict[str, Any]:
    """Run every evaluator.

    Args:
        evaluators: the settings of each.
        train: features of all training images.
        test: features of the test images.
        default: the layer that is always evaluated.
        dev: rows of train to fit on and rows to choose the layer by; None chooses nothing.
        by_depth: names of the evaluators that are run at every layer on the dev split, and choose their own best;
            the others take the layer that the last of these chose.
        options: seed, centring and device.
        pieces: a folder that keeps finished results, so that an interrupted call resumes.

    Returns:
        By evaluator: `default` and `headline` (the chosen layer), each with `block`, `pool` and the evaluator's
        result on test; and `by_depth`, the accuracy of every layer on the dev split.
    """
    found: dict[str, Any] = {}
    chosen, given = default, options or Options()
    order = {name: number for number, name in enumerate(by_depth)}
    for settings in sorted(evaluators, key=lambda settings: order.get(NAMES[type(settings)], len(order))):
        name = NAMES[type(settings)]
        entry: dict[str, Any] = {"by_depth": []}
        if name in by_depth and dev is not None and len(train.values) > 1:
            fitted, held = (train.take(rows) for rows in dev)
            fast = settings.model_copy(update={"grid": (settings.depth_c,)} if name == "linear_probe" else {})  # pyright: ignore
            for layer in train.values:
                here = _evaluate(fast, given, pieces, fitted, held, layer)
                entry["by_depth"].append({**layer._asdict(), "accuracy": here["accuracy"]})
            best = max(entry["by_depth"], key=lambda at: (at["accuracy"], at["block"]))
            chosen = FeatureLayer(best["block"], best["pool"])
        entry["default"] = _evaluate(settings, given, pieces, train, test, default)
        same = chosen == default
        entry["headline"] = entry["default"] if same else _evaluate(settings, given, pieces, train, test, chosen)
        found[name] = entry
    return {NAMES[type(settings)]: found[NAMES[type(settings)]] for settings in evaluators}


def _evaluate(
    settings: EvaluatorSettings,
    options: Options,
    pieces: Path | None,
    train: Features,
    test: Features,
    layer: FeatureLayer,
) -> Result:
    """One evaluator at one layer, or its result in `pieces` if it is there."""
    data = (train.values[layer], train.labels, test.values[layer], test.labels)
    where = layer._asdict()
    run = EVALUATORS[type(settings)]
    if pieces is None:
        return {**where, **run(settings, options, *(tensor.to(options.device) for tensor in data))}
    digest = weights_digest({str(number): tensor for number, tensor in enumerate(data)})
    asked = f"{type(settings).__name__} {settings.model_dump_json()} {options.seed} {options.centre} {digest}"
    path = pieces / f"{hashlib.sha256(asked.encode()).hexdigest()[:16]}.json"
    try:
        found: Result = json.loads(path.read_text())
    except (OSError, ValueError):
        found = run(settings, options, *(tensor.to(options.device) for tensor in data))
        pieces.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(found))
    return {**where, **found}


def check_feasible(
    evaluators: Sequence[EvaluatorSettings],
    labels: Numbers,
    dev: tuple[Numbers, Numbers] | None,
    by_depth: Sequence[str],
) -> None:
    """Check, before features are extracted, that there are enough images of every class.

    Args:
        evaluators: the settings of each.
        labels: int64 `(n,)`, of the training images.
        dev: rows of these to fit on and rows to choose the layer by; None if nothing is chosen.
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
        besides = " without the dev split of labels.dev" if apart else ""
        if isinstance(settings, FewShotSettings) and max(settings.shots) > counts.min():
            message = (
                f"class {counts.argmin()} has {counts.min()} images{besides}, fewer than {max(settings.shots)} shots"
            )
            raise settings.error(shots=message)
        if isinstance(settings, NeighbourSettings) and max(settings.k) > len(known):
            message = f"there are {len(known)} training images{besides}, fewer than {max(settings.k)}"
            raise settings.error(k=message)
        if isinstance(settings, ProbeSettings):
            regression()

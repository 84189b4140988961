"""The convex linear probe: multinomial logistic regression on frozen features, by scikit-learn's L-BFGS."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mpp.data.subsets import dev_split
from mpp.evaluation.checks import Labelled, checked

GRID = tuple(10.0**power for power in range(-5, 4))
"""Values of C to choose from; the penalty on the weights is 1 / C, beside the sum of the rows' losses."""
DEV_SHARE = 0.1
MAX_ITERATIONS = 1000
"""Of L-BFGS in each fit. With hardly any penalty (C from 10 on) it would go on for several thousand more, which moved
accuracies by a tenth of a point to nearly one where it was tried."""


@dataclass(frozen=True)
class Probe:
    """What the probe found."""

    accuracy: float
    """On test, in [0, 1]."""
    c: float
    """The C that was best on the dev split; the smaller of equals, which is the stronger penalty."""
    dev: dict[float, float]
    """C → accuracy on the dev split."""


def linear_probe(
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    test_labels: Any,
    grid: Sequence[float] = GRID,
    seed: int = 0,
) -> Probe:
    """Accuracy on test of a logistic regression on standardised features.

    C is chosen on a tenth of train, held out with all classes in their shares; the classifier is then fitted to all of
    train again.

    Args:
        train_features: `(N, D)`, an array or a tensor.
        train_labels: integers `(N,)`, in [0, classes).
        test_features: `(M, D)`.
        test_labels: integers `(M,)`.
        grid: values of C.
        seed: decides which rows are held out.

    Raises:
        ValueError: for a single class, labels out of range, or features that are not finite.
        RuntimeError: if scikit-learn is not installed.
    """
    data = checked(train_features, train_labels, test_features, test_labels, torch.float64)
    if not grid or min(grid) <= 0:
        raise ValueError(f"the linear probe needs values of C above 0; found {tuple(grid)}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="lbfgs failed to converge")
        return _probe(data, grid, seed)


def _probe(data: Labelled, grid: Sequence[float], seed: int) -> Probe:
    features, labels = data.train.numpy(), data.train_labels.numpy()
    dev: dict[float, float] = {}
    if len(grid) > 1:
        fitted, held = dev_split(labels, DEV_SHARE, seed)
        scale = _Scale(features[fitted])
        model = regression()
        for c in sorted(grid):  # from the stiffest: each fit begins where the last one ended
            model.set_params(C=c).fit(scale(features[fitted]), labels[fitted])
            dev[c] = float((model.predict(scale(features[held])) == labels[held]).mean())
    best = max(dev, key=lambda c: (dev[c], -c)) if dev else grid[0]
    scale = _Scale(features)
    model = regression().set_params(C=best).fit(scale(features), labels)
    accuracy = float((model.predict(scale(data.test.numpy())) == data.test_labels.numpy()).mean())
    return Probe(accuracy, best, dev)


def regression() -> Any:
    """scikit-learn's logistic regression, which begins where its last fit ended.

    Raises:
        RuntimeError: if scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise RuntimeError(
            'the linear probe needs scikit-learn: pip install "mpp[study]", or leave linear_probe out of the recipe'
        ) from error
    return LogisticRegression(max_iter=MAX_ITERATIONS, tol=1e-6, warm_start=True)


class _Scale:
    """Standardisation by the rows that it was made from; what does not vary there becomes 0."""

    def __init__(self, rows: np.ndarray[Any, Any]) -> None:
        self.mean = rows.mean(0)
        spread = rows.std(0)
        self.factor = np.divide(1, spread, out=np.zeros_like(spread), where=np.ptp(rows, axis=0) > 0)

    def __call__(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return (rows - self.mean) * self.factor

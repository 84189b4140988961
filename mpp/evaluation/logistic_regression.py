"""The convex linear probe: multinomial logistic regression on frozen features, by scikit-learn's Newton methods.

The optimum is unique, so any solver that reaches it will do. L-BFGS does not on the features of transformers: these are
so correlated that with hardly any penalty it needs thousands of iterations. Newton's method with conjugate gradients
takes seconds for most values of C, and where it stalls, exact steps take over.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from mpp.data.label_subsets import dev_split
from mpp.evaluation.arrays import checked

GRID = tuple(10.0**power for power in range(-5, 4))
"""Values of C to choose from; the penalty on the weights is 1 / C, beside the sum of the rows' losses."""
Rows = np.ndarray[Any, Any]
DEV_SHARE = 0.1
TOLERANCE = 1e-6
"""The largest gradient of the mean loss at which a fit counts as converged; asked for is a tenth of it."""
EXACT_UP_TO = 8192
"""Weights (classes times features + 1) up to which a Hessian of all of them is affordable: half a gigabyte."""


@dataclass(frozen=True)
class Probe:
    """The result of the probe."""

    accuracy: float
    """On test, in [0, 1]."""
    c: float
    """The best C on the dev split; of equals the smaller, the stronger penalty."""
    dev: dict[float, float]
    """C → accuracy on the dev split."""
    converged: bool
    """Whether all fits, of the grid and the last one, reached a gradient below `TOLERANCE`."""

    @property
    def grid_end(self) -> Literal["smallest", "largest"] | None:
        """The end of the grid that the chosen C is at, if any: a better C may lie beyond."""
        if len(self.dev) < 2 or min(self.dev) < self.c < max(self.dev):
            return None
        return "smallest" if self.c == min(self.dev) else "largest"


def linear_probe(
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    test_labels: Any,
    grid: Sequence[float] = GRID,
    seed: int = 0,
) -> Probe:
    """Accuracy on test of a logistic regression on standardised features.

    C is chosen from `grid` on a held-out, stratified tenth of train, drawn by `seed`; the classifier is then fitted to
    all of train. Features and labels are as of `few_shot`, which refuses the same ones.

    Raises:
        RuntimeError: if scikit-learn is not installed.
    """
    data = checked(train_features, train_labels, test_features, test_labels, torch.float64)
    if not grid or min(grid) <= 0:
        raise ValueError(f"the linear probe needs values of C above 0; found {tuple(grid)}")
    features, labels = data.train.cpu().numpy(), data.train_labels.cpu().numpy()  # scikit-learn's device
    dev: dict[float, float] = {}
    converged = []
    if len(grid) > 1:
        fitted, held = dev_split(labels, DEV_SHARE, seed)
        scale = _Scale(features[fitted])
        model = regression()
        for c in sorted(grid):  # the strongest penalty first: each fit starts at the weights of the last one
            converged.append(_fit(model, c, scale(features[fitted]), labels[fitted]))
            dev[c] = float((model.predict(scale(features[held])) == labels[held]).mean())
    best = max(dev, key=lambda c: (dev[c], -c)) if dev else grid[0]
    scale, model = _Scale(features), regression()
    converged.append(_fit(model, best, scale(features), labels))
    accuracy = float((model.predict(scale(data.test.cpu().numpy())) == data.test_labels.cpu().numpy()).mean())
    return Probe(accuracy, best, dev, all(converged))


def _fit(model: Any, c: float, rows: Rows, labels: Rows) -> bool:
    """Fit the model from its present weights; return whether it converged."""
    size = len(np.unique(labels)) * (rows.shape[1] + 1)
    solvers = [("newton-cg", 20), ("newton-cholesky", 50) if size <= EXACT_UP_TO else ("newton-cg", 200)]
    for solver, iterations in solvers:
        model.set_params(C=c, solver=solver, max_iter=iterations)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about slow steps: the gradient at the end decides
            model.fit(rows, labels)
        if _gradient(model, c, rows, labels) <= TOLERANCE:
            return True
    return False


def _gradient(model: Any, c: float, rows: Rows, labels: Rows) -> float:
    """The largest derivative of the mean loss by a weight or an intercept."""
    wrong = model.predict_proba(rows) - (labels[:, None] == model.classes_)
    wrong = wrong[:, -len(model.coef_) :]  # two classes have the second one's weights alone
    by_weight = (wrong.T @ rows + model.coef_ / c) / len(rows)
    return float(max(np.abs(by_weight).max(), np.abs(wrong.mean(0)).max()))


def regression() -> Any:
    """scikit-learn's logistic regression with a warm start; a RuntimeError if it is not installed."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise RuntimeError(
            'the linear probe needs scikit-learn: pip install "mpp[study]", or leave linear_probe out of the recipe'
        ) from error
    return LogisticRegression(tol=TOLERANCE / 10, warm_start=True)


class _Scale:
    """Standardisation by the given rows; a feature that is constant there becomes 0."""

    def __init__(self, rows: Rows) -> None:
        self.mean = rows.mean(0)
        spread = rows.std(0)
        self.factor = np.divide(1, spread, out=np.zeros_like(spread), where=np.ptp(rows, axis=0) > 0)

    def __call__(self, rows: Rows) -> Rows:
        return (rows - self.mean) * self.factor

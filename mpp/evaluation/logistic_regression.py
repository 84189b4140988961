"""The convex linear probe: multinomial logistic regression on frozen features, by preconditioned L-BFGS.

The optimum is unique, so any solver that reaches it will do. Plain L-BFGS does not on the features of transformers:
these are so correlated that with hardly any penalty it needs thousands of iterations. Turned onto their principal axes,
each scaled by its curvature (a quarter of the bound XᵀX / 2n of Böhning 1992), it takes tens, or hundreds for large C.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mpp.data.label_subsets import dev_split
from mpp.evaluation.arrays import checked
from mpp.extras import require
from mpp.progress import DELAY, quiet

GRID = tuple(10.0**power for power in range(-5, 4))
"""Values of C to choose from; the penalty on the weights is 1 / C, beside the sum of the rows' losses."""
DEV_SHARE = 0.1
TOLERANCE = 1e-6
"""The largest gradient of the mean loss at which a fit counts as converged; asked for is a tenth of it."""
SMALL = 2**22
"""Features of all rows together up to which one thread is enough."""
ITERATIONS = 5000
"""Of one fit, at most; hundreds are usual where C is large."""


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
    predicted: Tensor = field(repr=False, compare=False)
    """The class of each test image: int64 `(M,)`."""

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
    patience: int | None = None,
) -> Probe:
    """Accuracy on test of a logistic regression on standardised features.

    C is chosen from `grid` on a held-out, stratified tenth of train, drawn by `seed`; the classifier is then fitted to
    all of train. Features and labels are as of `few_shot`, which refuses the same ones. With `patience`, the grid
    ends after so many C in a row that are no better than the best, the smallest first: large C take longest.

    Raises:
        RuntimeError: if SciPy is not installed.
    """
    data = checked(train_features, train_labels, test_features, test_labels, torch.float64)
    if not grid or min(grid) <= 0:
        raise ValueError(f"the linear probe needs values of C above 0; found {tuple(grid)}")
    require_solver()
    rows, labels, test = data.train.cpu(), data.train_labels.cpu(), data.test.cpu()
    with _few_threads(rows):
        return _choose_and_fit(rows, labels, test, data.test_labels.cpu(), grid, seed, patience)


@contextmanager
def _few_threads(rows: Tensor) -> Iterator[None]:
    """One thread where the products are so small that several would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if rows.numel() <= SMALL else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _choose_and_fit(
    rows: Tensor,
    labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    grid: Sequence[float],
    seed: int,
    patience: int | None,
) -> Probe:
    """The best C on the dev split, and the accuracy of its fit to all rows."""
    dev: dict[float, float] = {}
    converged = []
    if len(grid) > 1:
        fitted, held = (torch.from_numpy(numbers) for numbers in dev_split(labels.numpy(), DEV_SHARE, seed))
        model = _Regression(rows[fitted], labels[fitted])
        shown = sorted(grid)  # the strongest penalty first: each fit starts at the weights of the last one
        for c in tqdm(shown, desc="linear probe", unit="C", delay=DELAY, disable=quiet(), leave=False):
            converged.append(model.fit(c))
            dev[c] = _accuracy(model.predict(rows[held]), labels[held])
            tried = list(dev.values())
            if patience is not None and len(tried) - 1 - tried.index(max(tried)) >= patience:
                break
    best = max(dev, key=lambda c: (dev[c], -c)) if dev else grid[0]
    model = _Regression(rows, labels)
    converged.append(model.fit(best))
    predicted = model.predict(test)
    return Probe(_accuracy(predicted, test_labels), best, dev, all(converged), predicted)


def require_solver() -> None:
    """Raise a RuntimeError if SciPy is not installed."""
    require("the linear probe", "scipy")


def _accuracy(predicted: Tensor, labels: Tensor) -> float:
    return int((predicted == labels).sum()) / len(labels)


class _Regression:
    """Softmax regression on standardised rows, float64 `(n, d)`, with labels int64 `(n,)`; it keeps its last weights.

    A feature that is constant in the rows becomes 0. As in scikit-learn, two classes share one vector of weights, which
    halves their penalty.
    """

    def __init__(self, rows: Tensor, labels: Tensor) -> None:
        self.mean, spread = rows.mean(0), rows.std(0, correction=0)
        self.factor = torch.where(rows.amax(0) > rows.amin(0), 1 / spread, 0.0)
        self.classes, self.labels = labels.unique(return_inverse=True)
        self.rows = (rows - self.mean) * self.factor
        # The penalty is the same in any direction, so that weights outside the span of the rows stay 0.
        span = torch.linalg.qr(self.rows.T).Q if rows.shape[1] > len(rows) else None
        turned = self.rows if span is None else self.rows @ span
        self.curvature, vectors = torch.linalg.eigh(turned.T @ turned / (8 * len(rows)))
        self.axes = vectors if span is None else span @ vectors
        self.turned = turned @ vectors
        self.weights = rows.new_zeros(len(self.classes), len(self.curvature) + 1)

    def fit(self, c: float) -> bool:
        """Fit from the present weights; return whether it converged."""
        from scipy.optimize import minimize  # late: half a second

        penalty = self._penalty(c)
        scale = (self.curvature.clamp(min=0) + penalty).rsqrt()
        rows, shape = self.turned * scale, self.weights.shape
        penalties = penalty * scale.square()
        scale = torch.cat([scale, scale.new_ones(1)])  # the intercepts stay as they are

        def loss(flat: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
            value, gradient = _loss(torch.from_numpy(flat).view(shape), rows, self.labels, penalties)
            largest[0] = float((gradient / scale).norm(dim=1).max())  # no derivative is larger, on any axes
            return float(value), gradient.flatten().numpy()

        def stop(intermediate_result: Any) -> None:
            if largest[0] <= TOLERANCE / 4:
                raise StopIteration

        largest = [0.0]
        options = {"maxiter": ITERATIONS, "maxfun": 2 * ITERATIONS, "maxcor": 20, "ftol": 0.0, "gtol": 0.0}
        start = (self.weights / scale).flatten().numpy()
        found = minimize(loss, start, jac=True, method="L-BFGS-B", callback=stop, options=options)
        self.weights = torch.from_numpy(found.x).view(shape) * scale
        return self.gradient(c) <= TOLERANCE

    def gradient(self, c: float) -> float:
        """The largest derivative of the mean loss, penalty included, by a weight or an intercept."""
        weights = torch.cat([self.weights[:, :-1] @ self.axes.T, self.weights[:, -1:]], dim=1)
        return float(_loss(weights, self.rows, self.labels, self._penalty(c))[1].abs().max())

    def predict(self, rows: Tensor) -> Tensor:
        """The likeliest class of each row: int64 `(m,)`."""
        weights = self.weights[:, :-1] @ self.axes.T
        values = ((rows - self.mean) * self.factor) @ weights.T + self.weights[:, -1]
        return self.classes[values.argmax(1)]

    def _penalty(self, c: float) -> float:
        return (2 if len(self.classes) == 2 else 1) / (c * len(self.rows))


def _loss(weights: Tensor, rows: Tensor, labels: Tensor, penalty: Tensor | float) -> tuple[Tensor, Tensor]:
    """The mean cross-entropy plus half the penalised squares of the weights, and its gradient `(classes, d + 1)`.

    The last column of the weights are the intercepts, which have no penalty.
    """
    inner = weights[:, :-1]
    logits = (inner @ rows.T + weights[:, -1:]).log_softmax(0)
    decayed = penalty * inner
    value = (decayed * inner).sum() / 2 - logits.gather(0, labels[None]).mean()
    wrong = logits.exp_()
    wrong.scatter_add_(0, labels[None], wrong.new_full((1, len(rows)), -1.0)).div_(len(rows))
    return value, torch.cat([wrong @ rows + decayed, wrong.sum(1, keepdim=True)], dim=1)

"""Linear few-shot: ridge regression to the classes of a few images each, in closed form.

After big_vision's `fewshot_lsr`: with μ and the population σ over the N shots, X = [(F − μ)/(σ + 1e-5), 100] (the last
column stands for the bias), Y = 2 · onehot − 1, the weights are W = (XᵀX + λ)⁻¹ XᵀY. With as many rows as columns or
more, XᵀX = QΛQᵀ gives W = Q (Λ+λ)⁻¹ Qᵀ XᵀY; with fewer, XXᵀ = QΛQᵀ gives W = Xᵀ Q (Λ+λ)⁻¹ Qᵀ Y. Either way one
eigendecomposition serves every λ. All in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mpp.evaluation.arrays import Labelled, checked

BIAS = 100.0
EPSILON = 1e-5
L2 = 2.0**10
L2_GRID = tuple(2.0**power for power in range(0, 21, 2))
"""What `l2="auto"` chooses from."""


@dataclass(frozen=True)
class Score:
    """Accuracies in [0, 1] over the seeds that draw the shots."""

    per_seed: tuple[float, ...]

    @classmethod
    def of(cls, predicted: Tensor, labels: Tensor) -> Score:
        """The score of predictions `(seeds, M)`, where the labels are `(M,)`."""
        return cls(tuple(int((row == labels).sum()) / len(labels) for row in predicted))

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return float(np.mean(self.per_seed))

    @property
    def std(self) -> float:
        """The standard deviation over the seeds, with n − 1; 0 for a single one."""
        return float(np.std(self.per_seed, ddof=1)) if len(self.per_seed) > 1 else 0.0

    def __repr__(self) -> str:
        return f"Score(mean={self.mean:.4f}, std={self.std:.4f}, per_seed={self.per_seed})"


def few_shot(
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    test_labels: Any,
    shots: Sequence[int] | int = (1, 5, 10, 25),
    seeds: Sequence[int] | int = (0, 1, 2),
    l2: float | Literal["auto"] = L2,
) -> dict[int, Score]:
    """Accuracy on test of a ridge classifier fitted to a few images of each class.

    Args:
        train_features: `(N, D)`, an array or a tensor; the shots are drawn from these.
        train_labels: integers `(N,)`, in [0, classes).
        test_features: `(M, D)`.
        test_labels: integers `(M,)`.
        shots: images of a class; the smaller sets are subsets of the larger ones.
        seeds: one draw of the shots each.
        l2: λ; `auto` chooses it on the shots alone, by leaving one of every class out at a time (at one shot: 2¹⁰).

    Returns:
        A score for each number of shots.

    Raises:
        ValueError: if a class has fewer images than shots, for a single class, labels out of range, or features that
            are not finite.
    """
    data = checked(train_features, train_labels, test_features, test_labels, torch.float64)
    found = few_shot_predictions(data, shots, seeds, l2)
    return {count: Score.of(rows, data.test_labels) for count, rows in found.items()}


def few_shot_predictions(
    data: Labelled, shots: Sequence[int] | int, seeds: Sequence[int] | int, l2: float | Literal["auto"] = L2
) -> dict[int, Tensor]:
    """The class that `few_shot` predicts of each test image, by the number of shots: int64 `(seeds, M)`.

    Raises:
        ValueError: as `few_shot`.
    """
    shots, seeds = _numbers(shots, "shots", 1), _numbers(seeds, "seeds", 0)
    number = isinstance(l2, int | float | np.integer | np.floating) and not isinstance(l2, bool)
    if l2 != "auto" and not (number and 0 < l2 < math.inf):
        raise ValueError(f"l2 must be a number above 0, or auto; found {l2!r}")
    predicted: dict[int, list[Tensor]] = {count: [] for count in shots}
    for seed in seeds:
        rows = torch.from_numpy(shot_rows(data.train_labels.cpu(), max(shots), seed)).to(data.train.device)
        for count in shots:
            chosen = rows[:, :count].reshape(-1)
            ridge = Ridge(data.train[chosen], data.train_labels[chosen], data.classes)
            value = ridge.best_l2(count) if l2 == "auto" else float(l2)
            predicted[count].append(ridge.scores(data.test, value).argmax(-1))
    return {count: torch.stack(rows) for count, rows in predicted.items()}


def _numbers(values: Any, name: str, least: int) -> tuple[int, ...]:
    """Whole numbers, each once; a ValueError for anything else, and for none."""
    array = np.atleast_1d(np.asarray(values))
    if array.ndim != 1 or not array.size or array.dtype.kind not in "iu" or array.min() < least:
        raise ValueError(f"few-shot needs {name} that are whole numbers of {least} or more; found {values!r}")
    return tuple(dict.fromkeys(array.tolist()))


def shot_rows(labels: Any, shots: int, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The rows of the shots: int64 `(classes, shots)`; fewer shots are the first columns of more."""
    labels = np.asarray(labels)
    generator = np.random.default_rng(seed)
    chosen = []
    for label in range(int(labels.max()) + 1):
        order = generator.permutation(np.flatnonzero(labels == label))
        if len(order) < shots:
            raise ValueError(f"class {label} has {len(order)} images, fewer than {shots} shots")
        chosen.append(order[:shots])
    return np.stack(chosen).astype(np.int64)


class Ridge:
    """The standardised rows X with their bias column, decomposed once for all λ, and their targets Y.

    Features are float64 `(N, D)`, labels int64 `(N,)` in [0, num_classes).
    """

    def __init__(self, features: Tensor, labels: Tensor, num_classes: int) -> None:
        self.targets = 2 * F.one_hot(labels, num_classes).double() - 1
        self.varies = features.amax(0) > features.amin(0)
        kept = features[:, self.varies]
        self.mean, self.std = kept.mean(0), kept.std(0, correction=0)
        rows = self._standardize(features)
        self.tall = rows.shape[0] >= rows.shape[1]
        gram = rows.T @ rows if self.tall else rows @ rows.T
        self.values, vectors = torch.linalg.eigh(gram)
        # XQ and Q, or Q and XᵀQ: they turn rows, and columns, into the eigenbasis.
        self.left, self.right = (rows @ vectors, vectors) if self.tall else (vectors, rows.T @ vectors)

    def scores(self, features: Tensor, l2: float) -> Tensor:
        """Decision values of float64 features `(M, D)` for a λ: float64 `(M, C)`."""
        weights = self.right @ ((self.left.T @ self.targets) / (self.values + l2)[:, None])
        return self._standardize(features) @ weights

    def leave_one_out(self, shots: int, l2: float) -> float:
        """Accuracy on shots left out, one of every class at a time; the rows are `shots` of each class, class by class.

        Leaving out a single row would unbalance the bias, and scores 0. With H = X (XᵀX + λ)⁻¹ Xᵀ, the residual of
        the rows J in a fit without them is (I − H_JJ)⁻¹ (Y_J − (HY)_J): nothing is fitted again.
        """
        classes = self.targets.shape[1]
        # The eigenvalues of H in the basis `left`: H = left · diag(…) · leftᵀ.
        scale = 1 / (self.values + l2) if self.tall else self.values / (self.values + l2)
        fitted = scale[:, None] * (self.left.T @ self.targets)
        hits = 0
        for shot in range(shots):
            rows, wanted = self.left[shot::shots], self.targets[shot::shots]
            kept = torch.eye(classes).to(rows) - (rows * scale) @ rows.T
            left_out = wanted - torch.linalg.solve(kept, wanted - rows @ fitted)
            hits += int((left_out.argmax(-1) == torch.arange(classes, device=rows.device)).sum())
        return hits / (classes * shots)

    def best_l2(self, shots: int, l2s: Sequence[float] = L2_GRID) -> float:
        """The λ whose `leave_one_out` is best, the larger of equals; 2¹⁰ at one shot, where nothing can be left out."""
        return L2 if shots == 1 else max((self.leave_one_out(shots, l2), l2) for l2 in l2s)[1]

    def _standardize(self, features: Tensor) -> Tensor:
        scaled = (features[:, self.varies] - self.mean) / (self.std + EPSILON)
        return torch.cat([scaled, scaled.new_full((len(scaled), 1), BIAS)], dim=1)

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
from torch import Tensor

from mpp.evaluation.arrays import checked

BIAS = 100.0
EPSILON = 1e-5
L2 = 2.0**10
L2_GRID = tuple(2.0**power for power in range(0, 21, 2))
"""What `l2="auto"` chooses from."""


@dataclass(frozen=True)
class Score:
    """Accuracies in [0, 1] over the seeds that draw the shots."""

    per_seed: tuple[float, ...]

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
        shots: images of a class; the smaller sets are parts of the larger ones.
        seeds: one draw of the shots each.
        l2: λ; `auto` chooses it on the shots alone, by leaving one of every class out at a time (at one shot: 2¹⁰).

    Returns:
        A score for each number of shots.

    Raises:
        ValueError: if a class has fewer images than shots, for a single class, labels out of range, or features that
            are not finite.
    """
    data = checked(train_features, train_labels, test_features, test_labels, torch.float64)
    shots, seeds = _numbers(shots, "shots", 1), _numbers(seeds, "seeds", 0)
    number = isinstance(l2, int | float | np.integer | np.floating) and not isinstance(l2, bool)
    if l2 != "auto" and not (number and 0 < l2 < math.inf):
        raise ValueError(f"l2 must be a number above 0, or auto; found {l2!r}")
    per_seed: dict[int, list[float]] = {count: [] for count in shots}
    for seed in seeds:
        rows = torch.from_numpy(shot_rows(data.train_labels.cpu(), max(shots), seed)).to(data.train.device)
        for count in shots:
            chosen = rows[:, :count].reshape(-1)
            design = _Design(data.train[chosen])
            targets = _targets(data.train_labels[chosen], data.classes)
            value = _chosen(design, targets, count, L2_GRID) if l2 == "auto" else l2
            predicted = (design.standardize(data.test) @ design.weights(targets, float(value))).argmax(-1)
            per_seed[count].append(int((predicted == data.test_labels).sum()) / len(predicted))
    return {count: Score(tuple(values)) for count, values in per_seed.items()}


def _numbers(values: Any, name: str, least: int) -> tuple[int, ...]:
    """Whole numbers, each once.

    Raises:
        ValueError: for anything else, and for none at all.
    """
    array = np.atleast_1d(np.asarray(values))
    if array.ndim != 1 or not array.size or array.dtype.kind not in "iu" or array.min() < least:
        raise ValueError(f"few-shot needs {name} that are whole numbers of {least} or more; found {values!r}")
    return tuple(dict.fromkeys(array.tolist()))


def shot_rows(labels: Any, shots: int, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The rows of the shots: int64 `(classes, shots)`; fewer shots are the first columns of more.

    Raises:
        ValueError: if a class has fewer rows than shots.
    """
    labels = np.asarray(labels)
    generator = np.random.default_rng(seed)
    chosen = []
    for label in range(int(labels.max()) + 1):
        order = generator.permutation(np.flatnonzero(labels == label))
        if len(order) < shots:
            raise ValueError(f"class {label} has {len(order)} images, fewer than {shots} shots")
        chosen.append(order[:shots])
    return np.stack(chosen).astype(np.int64)


@dataclass(frozen=True)
class Ridge:
    """A fitted classifier."""

    design: _Design
    weights: Tensor
    """float64 `(D′ + 1, classes)`, of the features that vary, standardised, and the bias column."""

    def scores(self, rows: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Features `(M, D)` → float64 `(M, classes)`; the largest is the answer."""
        return (self.design.standardize(torch.as_tensor(rows).cpu().double()) @ self.weights).numpy()

    def predict(self, rows: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Features `(M, D)` → int64 `(M,)`."""
        return self.scores(rows).argmax(-1)


def fit(features: Any, labels: Any, num_classes: int, l2: float) -> Ridge:
    """Fit the classifier to all the rows given.

    Args:
        features: `(N, D)`.
        labels: integers `(N,)`, in [0, num_classes).
        num_classes: C.
        l2: λ.
    """
    design = _Design(torch.as_tensor(features).cpu().double())
    return Ridge(design, design.weights(_targets(torch.as_tensor(labels).cpu().long(), num_classes), l2))


def leave_one_out(features: Any, num_classes: int, shots: int, l2s: Sequence[float]) -> list[float]:
    """Accuracy on shots left out, one of every class at a time, for each λ.

    Leaving out a single row would unbalance the bias, and scores 0. With H = X (XᵀX + λ)⁻¹ Xᵀ, what a fit without the
    rows J misses them by is (I − H_JJ)⁻¹ (Y_J − (HY)_J): nothing is fitted again.

    Args:
        features: `(C · shots, D)`, class by class.
        num_classes: C.
        shots: of each class, 2 or more.
        l2s: values of λ.
    """
    design = _Design(torch.as_tensor(features).cpu().double())
    return _leave_one_out(design, _targets(torch.arange(num_classes).repeat_interleave(shots), num_classes), shots, l2s)


def chosen_l2(features: Any, num_classes: int, shots: int, l2s: Sequence[float] = L2_GRID) -> float:
    """The λ whose `leave_one_out` is best, the larger of equals; 2¹⁰ at one shot, where nothing can be left out."""
    design = _Design(torch.as_tensor(features).cpu().double())
    labels = torch.arange(num_classes).repeat_interleave(shots)
    return _chosen(design, _targets(labels, num_classes), shots, l2s)


class _Design:
    """The standardised rows X with their bias column, decomposed when first needed, once for all λ."""

    def __init__(self, features: Tensor) -> None:
        self.varies = features.amax(0) > features.amin(0)
        kept = features[:, self.varies]
        self.mean, self.std = kept.mean(0), kept.std(0, correction=0)
        self.rows = self.standardize(features)
        tall = self.rows.shape[0] >= self.rows.shape[1]
        gram = self.rows.T @ self.rows if tall else self.rows @ self.rows.T
        self.values, vectors = torch.linalg.eigh(gram)
        # XQ and Q, or Q and XᵀQ: what turns rows, and what turns columns, into the eigenbasis.
        self.left, self.right = (self.rows @ vectors, vectors) if tall else (vectors, self.rows.T @ vectors)
        self.tall = tall

    def standardize(self, features: Tensor) -> Tensor:
        """float64 `(n, D)` → `(n, D′ + 1)`."""
        scaled = (features[:, self.varies] - self.mean) / (self.std + EPSILON)
        return torch.cat([scaled, scaled.new_full((len(scaled), 1), BIAS)], dim=1)

    def weights(self, targets: Tensor, l2: float) -> Tensor:
        """W: float64 `(D′ + 1, classes)`."""
        return self.right @ ((self.left.T @ targets) / (self.values + l2)[:, None])

    def hat(self, l2: float) -> Tensor:
        """The eigenvalues of H in the basis `left`: H = left · diag(…) · leftᵀ."""
        return 1 / (self.values + l2) if self.tall else self.values / (self.values + l2)


def _leave_one_out(design: _Design, targets: Tensor, shots: int, l2s: Sequence[float]) -> list[float]:
    classes = targets.shape[1]
    by_shot = design.left.view(classes, shots, -1).transpose(0, 1)  # (shots, classes, r)
    wanted = targets.view(classes, shots, classes).transpose(0, 1)
    turned = design.left.T @ targets
    accuracies = []
    for l2 in l2s:
        scale = design.hat(l2)
        hits = 0
        for rows, labels in zip(by_shot, wanted, strict=True):
            misses = labels - rows @ (scale[:, None] * turned)
            kept = torch.eye(classes).to(rows) - (rows * scale) @ rows.T
            left_out = labels - torch.linalg.solve(kept, misses)
            hits += int((left_out.argmax(-1) == torch.arange(classes, device=rows.device)).sum())
        accuracies.append(hits / (classes * shots))
    return accuracies


def _chosen(design: _Design, targets: Tensor, shots: int, l2s: Sequence[float]) -> float:
    if shots == 1:
        return L2
    accuracies = _leave_one_out(design, targets, shots, l2s)
    return max(zip(accuracies, l2s, strict=True))[1]


def _targets(labels: Tensor, classes: int) -> Tensor:
    return 2 * torch.nn.functional.one_hot(labels, classes).double() - 1

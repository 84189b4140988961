"""Nearest neighbours by cosine, their votes weighted (Wu et al. 2018; as DINO does)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mpp.evaluation.arrays import Labelled, checked

CHUNK = 2**26
"""Similarities in memory at once."""


def nearest_neighbours(
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    test_labels: Any,
    k: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    centre: bool = False,
) -> dict[int, float]:
    """Accuracy on test, for each k, of the k nearest rows of train, whose votes weigh exp(cosine / temperature).

    Args:
        train_features, train_labels, test_features, test_labels: as of `few_shot`.
        k: numbers of neighbours.
        temperature: the smaller, the more the nearest count.
        centre: subtract the mean of train first. Features that are all positive, such as pixels, have nearly equal
            directions otherwise.

    Raises:
        ValueError: if train has fewer rows than k, or for what `few_shot` refuses.
    """
    data = checked(train_features, train_labels, test_features, test_labels, torch.float32)
    found = neighbour_predictions(data, k, temperature, centre)
    return {count: int((rows == data.test_labels).sum()) / len(rows) for count, rows in found.items()}


def neighbour_predictions(
    data: Labelled, k: Sequence[int], temperature: float = 0.07, centre: bool = False
) -> dict[int, Tensor]:
    """The class that `nearest_neighbours` predicts of each test image, for each k: int64 `(M,)`.

    Raises:
        ValueError: as `nearest_neighbours`.
    """
    if not k or min(k) < 1 or max(k) > len(data.train):
        raise ValueError(f"k must lie between 1 and the {len(data.train)} rows of train; found {tuple(k)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0; found {temperature}")
    mean = data.train.mean(0) if centre else 0.0
    known, asked = F.normalize(data.train - mean), F.normalize(data.test - mean)
    predicted: dict[int, list[Tensor]] = {count: [] for count in k}
    size = max(CHUNK // max(len(known), data.classes), 1)
    for rows in asked.split(size):
        similar, nearest = (rows @ known.T).topk(max(k))
        # Relative to the nearest of each row: its votes keep their ratios, and neither overflow nor all vanish.
        weights = ((similar - similar[:, :1]) / temperature).exp()
        found = data.train_labels[nearest]
        for count, classes in predicted.items():
            votes = rows.new_zeros(len(rows), data.classes).scatter_add_(1, found[:, :count], weights[:, :count])
            classes.append(votes.argmax(-1))
    return {count: torch.cat(classes) for count, classes in predicted.items()}

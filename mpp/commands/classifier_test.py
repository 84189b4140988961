"""What the test of a fine-tuning says beyond its accuracy: chance, each class, and what was taken for what."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpp.commands.score_verdict import CLEAR, standard_error
from mpp.evaluation.predictions import FILE, LABELS, read_predictions

LARGEST_MATRIX = 20
"""With more classes there is no confusion matrix: nobody reads it."""


@dataclass(frozen=True)
class ClassResult:
    """The test images of a class."""

    name: str
    images: int
    correct: int
    predicted: int
    """How many test images of any class the classifier puts here."""

    @property
    def accuracy(self) -> float | None:
        """The share of its images that are recognised; None without any."""
        return self.correct / self.images if self.images else None


@dataclass(frozen=True)
class ClassifierTest:
    """The test of a classifier: `matrix[i, j]` counts the images of class i that it takes for class j."""

    accuracy: float
    loss: float
    images: int
    names: tuple[str, ...]
    matrix: NDArray[np.int64] | None
    """`(classes, classes)`; None where no predictions were stored."""

    @property
    def error(self) -> float:
        """The standard error of the accuracy."""
        return standard_error(self.accuracy, self.images)

    @property
    def chance(self) -> float:
        """The accuracy of guessing, with equal odds."""
        return 1 / len(self.names)

    @property
    def chance_loss(self) -> float:
        """The loss of equal odds, nats."""
        return math.log(len(self.names))

    @property
    def is_small_enough(self) -> bool:
        """Whether the matrix can be read."""
        return self.matrix is not None and len(self.names) <= LARGEST_MATRIX

    @property
    def classes(self) -> list[ClassResult]:
        """Each class, in the order of the labels; empty without predictions."""
        if self.matrix is None:
            return []
        rows = zip(self.names, self.matrix.sum(1), self.matrix.diagonal(), self.matrix.sum(0), strict=True)
        return [ClassResult(name, int(images), int(right), int(there)) for name, images, right, there in rows]

    def __str__(self) -> str:
        """Accuracy and loss beside those of chance, in two sentences."""
        difference = self.accuracy - self.chance
        side = "above" if difference > 0 else "below"
        clear = side if abs(difference) > CLEAR * self.error else f"not clearly {side}"
        return (
            f"Chance is {self.chance:.1%} with {len(self.names):,} classes: the accuracy is {clear} it. "
            f"The test loss is {self.loss:.3f} nats, and that of equal odds is {self.chance_loss:.3f}."
        )


def classifier_test(run: Path, results: Mapping[str, Any]) -> ClassifierTest | None:
    """The test of a finished fine-tuning, from its `results.json` and the predictions beside it.

    None for a run of an earlier version that has written down neither its predictions nor its classes.
    """
    predictions, test = read_predictions(run / FILE), results["test"]
    labels = predictions.pop(LABELS, None)
    predicted = next(iter(predictions.values()), None)
    known = results.get("class_names") or _names_in(run / "classifier" / "config.json")
    if labels is None or predicted is None:
        return ClassifierTest(test["accuracy"], test["loss"], test["images"], tuple(known), None) if known else None
    rows, columns = labels.long().numpy(), predicted.long().numpy()
    names = tuple(map(str, known or range(int(max(rows.max(), columns.max())) + 1)))
    matrix = np.bincount(rows * len(names) + columns, minlength=len(names) ** 2).reshape(len(names), len(names))
    return ClassifierTest(test["accuracy"], test["loss"], test["images"], names, matrix.astype(np.int64))


def _names_in(config: Path) -> Sequence[str] | None:
    """The class names of an exported classifier; None without one."""
    return json.loads(config.read_text(encoding="utf-8")).get("label_names") if config.is_file() else None

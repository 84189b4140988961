"""Labelled feature vectors with known difficulty, and every way of breaking them that an evaluation must refuse."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch


class Features(NamedTuple):
    """What every evaluation of frozen features is given, in its order."""

    train_features: np.ndarray
    train_labels: np.ndarray
    test_features: np.ndarray
    test_labels: np.ndarray


def blobs(classes: int, per_class: int, width: int, noise: float, seed: int, test_rows: int = 200) -> Features:
    """Gaussian blobs in no order, whose columns have scales and offsets of their own."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, width))
    scales, offsets = np.exp(rng.normal(size=width)), 3 * rng.normal(size=width)
    train_labels = rng.permutation(np.repeat(np.arange(classes), per_class))
    test_labels = rng.integers(0, classes, test_rows)
    train, test = ((centres[y] + noise * rng.normal(size=(len(y), width))) for y in (train_labels, test_labels))
    return Features(train * scales + offsets, train_labels, test * scales + offsets, test_labels)


def _with(array: np.ndarray, row: int, value: float) -> np.ndarray:
    changed = array.copy()
    changed[row] = value
    return changed


def _cell(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.copy()
    changed[-1, -1] = value
    return changed


# Name: how sound features become broken ones, and what the message has to name.
# The sound ones: 3 classes of 30 rows, 50 test rows, 6 columns.
BROKEN: dict[str, tuple[Callable[[Features], Features], str]] = {
    "one class": (lambda f: f._replace(train_labels=0 * f.train_labels, test_labels=0 * f.test_labels), "class"),
    "one class, not the first": (lambda f: f._replace(train_labels=0 * f.train_labels + 1), "one class"),
    "negative train label": (lambda f: f._replace(train_labels=_with(f.train_labels, 4, -1)), r"-1\b"),
    "negative test label": (lambda f: f._replace(test_labels=_with(f.test_labels, 4, -1)), r"-1\b"),
    "test label that train lacks": (lambda f: f._replace(test_labels=_with(f.test_labels, 4, 3)), r"\b3\b"),
    "NaN in train": (lambda f: f._replace(train_features=_cell(f.train_features, np.nan)), "(?i)nan|finite"),
    "NaN in test": (lambda f: f._replace(test_features=_cell(f.test_features, np.nan)), "(?i)nan|finite"),
    "infinity in train": (lambda f: f._replace(train_features=_cell(f.train_features, np.inf)), "(?i)inf"),
    "infinity in test": (lambda f: f._replace(test_features=_cell(f.test_features, -np.inf)), "(?i)inf"),
    "huge in train": (lambda f: f._replace(train_features=_cell(f.train_features, 1e200)), r"1e\+200|inf"),
    "huge in test": (lambda f: f._replace(test_features=_cell(f.test_features, -1e200)), r"1e\+200|inf"),
    "masked": (lambda f: f._replace(train_features=np.ma.masked_greater(f.train_features, 3.0)), "masked"),
    "complex": (lambda f: f._replace(train_features=f.train_features + 1j), "complex"),
    "complex tensor": (lambda f: f._replace(test_features=torch.from_numpy(f.test_features + 1j)), "complex"),
    "a train label too few": (lambda f: f._replace(train_labels=f.train_labels[:-1]), r"\b(90\D+89|89\D+90)\b"),
    "a train row too few": (lambda f: f._replace(train_features=f.train_features[:-1]), r"\b(90\D+89|89\D+90)\b"),
    "a test label too few": (lambda f: f._replace(test_labels=f.test_labels[:-1]), r"\b(50\D+49|49\D+50)\b"),
    "a single test label": (lambda f: f._replace(test_labels=f.test_labels[:1]), r"\b(50\D+1|1\D+50)\b"),
    "narrower test": (lambda f: f._replace(test_features=f.test_features[:, :-1]), r"\b(6\D+5|5\D+6)\b"),
    "test of one column": (lambda f: f._replace(test_features=f.test_features[:, :1]), r"\b(6\D+1|1\D+6)\b"),
}


def broken(name: str) -> tuple[Features, str]:
    """The features with that mistake, and what the message has to match."""
    change, message = BROKEN[name]
    return change(blobs(classes=3, per_class=30, width=6, noise=1.0, seed=0, test_rows=50)), message

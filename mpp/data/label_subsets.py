"""Subsets of a labelled data set: fractions of its labels, and rows held out of it; stratified by class."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpp import randomness
from mpp.data.sampler import Numbers


def fraction_rows(labels: Any, fraction: float, seed: int) -> Numbers:
    """A seeded fraction in (0, 1] of the rows, ascending. Smaller fractions are subsets of larger ones.

    Of a class with n rows, ⌊fraction · n + ½⌋ are taken, at least one.

    Raises:
        ValueError: for a fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"a fraction of the labels lies in (0, 1]; found {fraction:g}")
    chosen = [rows[: max(int(fraction * len(rows) + 0.5), 1)] for rows in _shuffled(labels, seed, "label fraction")]
    return np.sort(np.concatenate(chosen))


def dev_split(labels: Any, share: float, seed: int) -> tuple[Numbers, Numbers]:
    """Divide all rows into those to train on and a seeded share in (0, 1) to choose settings by; both ascending.

    Of a class with n ≥ 2 rows, ⌊share · n + ½⌋ are held out, at least one and at most n − 1.

    Raises:
        ValueError: for a share outside (0, 1), or if there is nothing to hold out.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share of the dev split lies in (0, 1); found {share:g}")
    train, dev = _divided(labels, share, seed, "dev split")
    if not len(dev):
        raise ValueError("no class has two images, one of which could be held out for the dev split")
    return train, dev


def reserve(labels: Any, share: float) -> tuple[Numbers, Numbers]:
    """Divide all rows into those to train on and a share in (0, 1) that nothing trains on; both ascending.

    Of each class as many rows as in `dev_split`, but always the same ones: no seed decides them.

    Raises:
        ValueError: if no class has two rows.
    """
    train, reserved = _divided(labels, share, 0, "reserved")
    if not len(reserved):
        raise ValueError("no class has two images, one of which could be reserved")
    return train, reserved


def _divided(labels: Any, share: float, seed: int, purpose: str) -> tuple[Numbers, Numbers]:
    """Most rows of each class, and the share that is held out; both ascending."""
    train, held_out = [], []
    for rows in _shuffled(labels, seed, purpose):
        held = min(max(int(share * len(rows) + 0.5), 1), len(rows) - 1)
        held_out.append(rows[:held])
        train.append(rows[held:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(held_out))


def _shuffled(labels: Any, seed: int, purpose: str) -> list[Numbers]:
    """The rows of each class, each in an order of its own."""
    labels = np.asarray(labels)
    order = randomness.permutation(randomness.key(seed, purpose), 0, len(labels))
    return [order[labels[order] == label] for label in np.unique(labels)]

"""Subsets of the labels: stratified, nested, seeded."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from mpp.data.label_subsets import dev_split, fraction_rows

SIZES = [1, 2, 3, 5, 15, 25, 49, 50, 51, 149, 150, 250, 400]


def unsorted_labels(sizes, seed=0):
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))


def assert_rows(rows, count):
    assert isinstance(rows, np.ndarray)
    assert rows.dtype == np.int64
    assert rows.ndim == 1
    assert (np.diff(rows) > 0).all(), "sorted, none twice"
    assert rows.size == 0 or 0 <= rows[0] <= rows[-1] < count


# fractions


@pytest.mark.parametrize("seed", [0, 1, 5])
@pytest.mark.parametrize("fraction", [0.001, 0.01, 0.1, 0.25, 1 / 3, 0.5, 0.99, 1, 1.0])
def test_every_class_gives_its_rounded_share_and_at_least_one_row(fraction, seed):
    labels = unsorted_labels(SIZES)
    rows = fraction_rows(labels, fraction, seed)
    assert_rows(rows, len(labels))
    expected = [max(1, math.floor(fraction * n + 0.5)) for n in SIZES]
    assert np.bincount(labels[rows], minlength=len(SIZES)).tolist() == expected


def test_halves_are_rounded_up():
    labels = unsorted_labels([15, 25, 35, 50])
    assert np.bincount(labels[fraction_rows(labels, 0.1, 0)]).tolist() == [2, 3, 4, 5]
    labels = unsorted_labels([150, 250, 350, 149])
    assert np.bincount(labels[fraction_rows(labels, 0.01, 0)]).tolist() == [2, 3, 4, 1]


@pytest.mark.parametrize("seed", range(5))
def test_smaller_fractions_lie_within_larger_ones(seed):
    labels = unsorted_labels(SIZES, seed=2)
    subsets = [set(fraction_rows(labels, f, seed).tolist()) for f in (0.005, 0.01, 0.05, 0.1, 0.3, 0.5, 0.9, 1.0)]
    for smaller, larger in pairwise(subsets):
        assert smaller < larger


def test_the_whole_is_every_row():
    labels = unsorted_labels(SIZES)
    for seed in (0, 1):
        np.testing.assert_array_equal(fraction_rows(labels, 1.0, seed), np.arange(len(labels)))


def test_the_seed_alone_decides_which_rows():
    labels = unsorted_labels([100, 60, 40])
    drawn = {tuple(fraction_rows(labels, 0.1, seed).tolist()) for seed in range(10)}
    assert len(drawn) == 10
    np.random.seed(1)  # noqa: NPY002  the global generator has no say
    first = fraction_rows(labels, 0.1, 3)
    np.random.seed(2)  # noqa: NPY002
    np.testing.assert_array_equal(fraction_rows(labels, 0.1, 3), first)


def test_every_row_of_a_class_is_as_likely_as_any_other():
    labels = unsorted_labels([20, 60])
    times = np.zeros(80)
    for seed in range(400):
        times[fraction_rows(labels, 0.1, seed)] += 1
    # 400 draws of a tenth: 40 each, six deviations either way
    assert times.min() > 40 - 36
    assert times.max() < 40 + 36


def test_labels_may_be_sorted_have_gaps_or_be_tensors():
    labels = unsorted_labels(SIZES)
    gaps = np.array([3, 90, 7])[unsorted_labels([10, 20, 30])]
    rows = fraction_rows(gaps, 0.2, 0)
    assert sorted(gaps[rows].tolist()) == [3] * 2 + [7] * 6 + [90] * 4
    ascending = np.sort(labels)
    counts = np.bincount(ascending[fraction_rows(ascending, 0.1, 0)], minlength=len(SIZES))
    assert counts.tolist() == [max(1, math.floor(0.1 * n + 0.5)) for n in SIZES]
    for dtype in (torch.int64, torch.int32, torch.uint8):
        tensor = torch.from_numpy(labels).to(dtype)
        np.testing.assert_array_equal(fraction_rows(tensor, 0.1, 0), fraction_rows(labels, 0.1, 0))


@pytest.mark.parametrize("fraction", [0, -0.1, 1.0001, 10, math.nan, math.inf])
def test_a_fraction_outside_zero_to_one_is_refused(fraction):
    with pytest.raises(ValueError, match=str(fraction)) as caught:
        fraction_rows(unsorted_labels([10, 20]), fraction, 0)
    assert "\n" not in str(caught.value)


# held-out rows


@pytest.mark.parametrize("seed", [0, 1, 5])
@pytest.mark.parametrize("share", [0.01, 0.02, 0.1, 1 / 3, 0.5, 0.9, 0.99])
def test_a_dev_split_parts_every_class_in_its_share(share, seed):
    labels = unsorted_labels(SIZES, seed=3)
    train, dev = dev_split(labels, share, seed)
    assert_rows(train, len(labels))
    assert_rows(dev, len(labels))
    np.testing.assert_array_equal(np.sort(np.concatenate([train, dev])), np.arange(len(labels)))
    of_train, of_dev = (np.bincount(labels[rows], minlength=len(SIZES)) for rows in (train, dev))
    for n, in_train, in_dev in zip(SIZES, of_train, of_dev, strict=True):
        if n >= 2:
            assert in_train >= 1
            assert in_dev >= 1
            # whichever way a share is rounded, and with at least one row on either side
            assert abs(in_dev - share * n) < 1


def test_a_dev_share_that_divides_the_classes_is_exact():
    labels = unsorted_labels([10, 50, 200], seed=4)
    _, dev = dev_split(labels, 0.1, 0)
    assert np.bincount(labels[dev]).tolist() == [1, 5, 20]


def test_the_seed_alone_decides_which_rows_are_held_out():
    labels = unsorted_labels([100, 60, 40])
    drawn = {tuple(dev_split(labels, 0.1, seed)[1].tolist()) for seed in range(10)}
    assert len(drawn) == 10
    np.random.seed(1)  # noqa: NPY002  the global generator has no say
    first = dev_split(labels, 0.1, 3)
    np.random.seed(2)  # noqa: NPY002
    for rows, again in zip(first, dev_split(labels, 0.1, 3), strict=True):
        np.testing.assert_array_equal(rows, again)
    for rows, again in zip(first, dev_split(torch.from_numpy(labels), 0.1, 3), strict=True):
        np.testing.assert_array_equal(rows, again)


def test_every_row_of_a_class_is_as_likely_to_be_held_out_as_any_other():
    labels = unsorted_labels([20, 60])
    times = np.zeros(80)
    for seed in range(400):
        times[dev_split(labels, 0.1, seed)[1]] += 1
    assert times.min() > 40 - 36
    assert times.max() < 40 + 36

"""Paired t intervals against SciPy's."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from mpp.study.statistics import paired


def pairs(n, seed):
    """Accuracies of two arms that share most of their scatter, as the same seeds give."""
    rng = np.random.default_rng(seed)
    shared = 0.1 * rng.normal(size=n)
    return 0.5 + shared + 0.02 * rng.normal(size=n), 0.53 + shared + 0.02 * rng.normal(size=n)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95, 0.99, 0.999])
@pytest.mark.parametrize("n", [2, 3, 4, 5, 7, 10, 30, 31, 32, 100, 1000])
def test_the_interval_is_that_of_the_paired_t_test(n, level):
    a, b = pairs(n, seed=n)
    interval = paired(a, b, level=level)
    expected = stats.ttest_rel(b, a).confidence_interval(level)
    assert [type(v) for v in (interval.mean, interval.low, interval.high)] == [float] * 3
    assert interval.mean == pytest.approx((b - a).mean(), rel=1e-12)
    assert interval.low == pytest.approx(expected.low, rel=1e-8, abs=1e-12)
    assert interval.high == pytest.approx(expected.high, rel=1e-8, abs=1e-12)


def test_the_default_level_is_95_percent():
    a, b = pairs(3, seed=0)
    assert paired(a, b) == paired(a, b, level=0.95)
    assert paired(a, b) != paired(a, b, level=0.9)


def test_three_differences_by_hand():
    # b − a = 1, 2, 3: mean 2, deviation 1, t(2; 0.975) = 4.302652729…
    interval = paired([5.0, 5.0, 7.0], [6.0, 7.0, 10.0])
    half = 4.302652729749464 / math.sqrt(3)
    assert interval.mean == pytest.approx(2)
    assert interval.low == pytest.approx(2 - half, rel=1e-9)
    assert interval.high == pytest.approx(2 + half, rel=1e-9)


def test_the_difference_is_the_second_minus_the_first():
    a, b = pairs(5, seed=1)
    forth, back = paired(a, b), paired(b, a)
    assert (back.mean, back.low, back.high) == pytest.approx((-forth.mean, -forth.high, -forth.low))
    assert paired([0.1, 0.2], [0.4, 0.6]).mean == pytest.approx(0.35)


def test_what_a_pair_shares_does_not_widen_the_interval():
    a, b = pairs(5, seed=2)
    shared = np.array([0.0, 100, -50, 7, 3])
    expected = paired(a, b)
    interval = paired(a + shared, b + shared)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-11)


def test_equal_differences_give_an_interval_of_no_width():
    interval = paired([1.0, 2.0, 4.0], [1.5, 2.5, 4.5])
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.5, 0.5)


def test_a_single_pair_gives_no_interval():
    with pytest.raises(ValueError, match="1"):
        paired([0.1], [0.2])


def test_lists_arrays_and_tensors_give_the_same():
    a, b = pairs(4, seed=3)
    expected = paired(a, b)
    assert paired(a.tolist(), b.tolist()) == expected
    assert paired(tuple(a.tolist()), tuple(b.tolist())) == expected
    assert paired(torch.from_numpy(a), torch.from_numpy(b)) == expected


@pytest.mark.parametrize(
    ("a", "b"), [([0.1], [0.2, 0.3, 0.4]), ([0.1, 0.2, 0.3], [0.4]), ([0.1, 0.2, 0.3], [0.4, 0.5])]
)
def test_what_does_not_pair_up_is_refused(a, b):
    with pytest.raises(ValueError, match=rf"(?s)\b{len(a)}\b.*\b{len(b)}\b|\b{len(b)}\b.*\b{len(a)}\b"):
        paired(a, b)

"""Paired t intervals against SciPy's; comparisons by simulation; Holm by its definition."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from mpp.study.statistics import compare, holm, paired


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


# compare, holm


def correctness(rng, n, images, *, seed_effect, image_effect, gain=0.03):
    """Two arms' right and wrong predictions, bool `(n, images)`."""
    difficulty = rng.normal(size=images) * 0.5
    wins = gain + seed_effect * rng.normal(size=(n, 1)) + image_effect * rng.normal(size=(1, images))
    draws = rng.random((n, images))
    base = 0.5 + 0.1 * np.tanh(difficulty)
    return draws < base, draws < base + wins


@pytest.mark.parametrize("n", [3, 6, 10])
@pytest.mark.parametrize("image_effect", [0.0, 0.25])
def test_intervals_cover_the_truth_in_95_percent_of_studies(n, image_effect):
    """Seeds and images are drawn anew in each study: the interval is about other seeds and other images."""
    rng = np.random.default_rng(n)
    studies, gain = 4000, 0.03
    covered = 0
    for _ in range(studies):
        seeds, images = 0.02 * rng.normal(size=(n, 1)), image_effect * rng.normal(size=(1, 400))
        noise = 0.05 * rng.normal(size=(n, 400))
        lower = rng.normal(size=(n, 400))
        found = compare(lower, lower + gain + seeds + images + noise)
        covered += found.low <= gain <= found.high
    assert 0.93 <= covered / studies <= 0.97


def test_it_is_the_formula_by_hand():
    lower = np.array([[0, 1, 0], [1, 1, 0]], dtype=bool)
    higher = np.array([[1, 1, 0], [1, 1, 1]], dtype=bool)
    found = compare(lower, higher)  # D = [[1, 0, 0], [0, 0, 1]]
    assert found.mean == pytest.approx(1 / 3)
    assert found.std_seeds == 0
    assert found.std_images == pytest.approx(np.std([0.5, 0, 0.5], ddof=1))
    assert found.df == pytest.approx(2)
    error = np.std([0.5, 0, 0.5], ddof=1) / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 2, 1 / 3, error))
    assert found.p == pytest.approx(2 * stats.t.sf(1 / 3 / error, 2))


def test_with_many_images_that_do_not_matter_it_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    lower, seeds = rng.random((5, 1)), 0.1 * rng.normal(size=(5, 1)) + 0.05
    one, other = np.repeat(lower, 50, axis=1), np.repeat(lower + seeds, 50, axis=1)
    found, expected = compare(one, other), stats.ttest_rel(other[:, 0], one[:, 0])
    assert found.df == pytest.approx(4)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))


def test_swapped_arms_give_the_mirrored_interval_and_equal_arms_nothing():
    rng = np.random.default_rng(1)
    one, other = correctness(rng, 6, 200, seed_effect=0.02, image_effect=0.1)
    there, back = compare(one, other), compare(other, one)
    assert (back.mean, back.low, back.high) == pytest.approx((-there.mean, -there.high, -there.low))
    assert back.p == pytest.approx(there.p)
    assert compare(one, one)[:4] == (0, 0, 0, 1)
    assert compare(one, torch.from_numpy(other)) == there


@pytest.mark.parametrize(("lower", "higher", "words"), [
    (np.zeros((3, 4)), np.zeros((3, 5)), r"\(3, 4\) and \(3, 5\)"),
    (np.zeros((1, 4)), np.zeros((1, 4)), "two or more"),
    (np.zeros(4), np.zeros(4), r"\(seeds, images\)"),
    (np.zeros((2, 2)), np.full((2, 2), np.nan), "finite"),
])  # fmt: skip
def test_arrays_that_cannot_be_compared_are_refused(lower, higher, words):
    with pytest.raises(ValueError, match=words):
        compare(lower, higher)


def test_holm_by_hand_and_by_its_definition():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    rng = np.random.default_rng(0)
    for count in (1, 2, 6):
        values = rng.random(count) ** 3
        adjusted = holm(list(values))
        for level in np.linspace(0.001, 0.999, 50):
            rejected, order = set(), np.argsort(values)
            for rank, index in enumerate(order):  # the step-down procedure itself
                if values[index] > level / (count - rank):
                    break
                rejected.add(index)
            assert {i for i, p in enumerate(adjusted) if p <= level} == rejected
    with pytest.raises(ValueError, match="numbers in"):
        holm([0.1, 1.2])

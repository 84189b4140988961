"""Comparisons against a plain reference and by simulation; Holm's method by its definition."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import mpp
from mpp.study.statistics import Comparison, compare, detectable, holm


def correctness(rng, n, images):
    """Two arms' right and wrong predictions of the same images, bool `(n, images)`."""
    difficulty, skill = rng.normal(size=images), 0.1 * rng.normal(size=(n, 1))
    draws = rng.random((n, images))
    return draws < stats.norm.cdf(difficulty + skill), draws < stats.norm.cdf(difficulty + 2 * skill + 0.1)


def reference(lower, higher, level):
    """The interval of the protocol, number by number: mean, low, high, p, df."""
    n, m = len(lower), len(lower[0])
    gaps = [[float(higher[s][i]) - float(lower[s][i]) for i in range(m)] for s in range(n)]
    by_seed = [math.fsum(row) / m for row in gaps]
    by_image = [math.fsum(row[i] for row in gaps) / n for i in range(m)]
    mean = math.fsum(by_seed) / n
    seeds = math.fsum((each - mean) ** 2 for each in by_seed) / (n - 1) / n
    images = math.fsum((each - mean) ** 2 for each in by_image) / (m - 1) / m
    df = (seeds + images) ** 2 / (seeds**2 / (n - 1) + images**2 / (m - 1))
    error = math.sqrt(seeds + images)
    low, high = stats.t.interval(level, df, loc=mean, scale=error)
    return mean, low, high, 2 * stats.t.sf(abs(mean) / error, df), df


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(("n", "images"), [(2, 20), (2, 50), (3, 200), (6, 37), (10, 200), (30, 5)])
def test_a_comparison_is_that_of_the_protocol(n, images, level):
    rng = np.random.default_rng(100 * n + images)
    right = correctness(rng, n, images)
    draws = [rng.integers(0, 4, size=(n, images)) / 3 for _ in range(2)]  # means over three few-shot draws
    for lower, higher in (right, draws):
        found = compare(lower, higher, level)
        expected = reference(lower.tolist(), higher.tolist(), level)
        assert (found.mean, found.low, found.high, found.p, found.df) == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert {type(each) for each in found} == {float}
    assert compare(*right) == compare(*right, level=0.95)


@pytest.mark.parametrize("n", [3, 6, 10])
@pytest.mark.parametrize(("seed_effect", "image_effect"), [(0.02, 0.0), (0.02, 0.25), (0.005, 0.25)])
def test_intervals_cover_the_truth_in_95_percent_of_studies(n, seed_effect, image_effect):
    """Seeds and images are drawn anew in each study: the interval is about other seeds and other images.

    The differences are Gaussian and have almost no noise of a single seed on a single image. Such noise is in the
    variance over the seeds and in that over the images, so that it is counted twice: see the next test.
    """
    rng = np.random.default_rng(n)
    studies, images, gain = 4000, 200, 0.03
    covered = 0
    for _ in range(studies):
        effects = seed_effect * rng.normal(size=(n, 1)) + image_effect * rng.normal(size=(1, images))
        found = compare(np.zeros((n, images)), gain + effects + 0.01 * rng.normal(size=(n, images)))
        covered += found.low <= gain <= found.high
    assert 0.93 <= covered / studies <= 0.97


@pytest.mark.parametrize("n", [3, 6, 10])
def test_of_right_and_wrong_alone_the_intervals_are_too_wide_and_never_too_narrow(n):
    """Whether a seed is right on an image is noise of its own. With variance v of each difference, the variance of
    the mean is v / nM; the variance over the seeds estimates it once, that over the images once more. So intervals of
    such data are up to √2 as wide as they need be: what is shown is shown, and some differences are missed."""
    rng = np.random.default_rng(n)
    studies, images, gain = 1000, 200, 0.1
    covered, errors, means = 0, [], []
    for _ in range(studies):
        lower, higher = rng.random((n, images)) < 0.5, rng.random((n, images)) < 0.5 + gain
        found = compare(lower, higher)
        covered += found.low <= gain <= found.high
        errors.append(found.std_seeds**2 / n + found.std_images**2 / images)
        means.append(found.mean)
    assert covered / studies >= 0.97
    assert np.mean(errors) / np.var(means) == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize("n", [6, 10])
@pytest.mark.parametrize(("claims", "power"), [(1, 0.8), (5, 0.8), (5, 0.9)])
def test_a_difference_of_the_detectable_size_is_shown_with_the_asked_probability(n, claims, power):
    """The size follows from the true spread; studies with exactly this difference are simulated."""
    seeds, images, count = 0.02, 0.2, 200
    parts = seeds**2 / n, images**2 / count
    df = sum(parts) ** 2 / (parts[0] ** 2 / (n - 1) + parts[1] ** 2 / (count - 1))
    half = math.sqrt(sum(parts)) * stats.t.ppf(0.975, df)
    size = detectable(Comparison(0.01, 0.01 - half, 0.01 + half, 0.5, seeds, images, df), claims, power)

    rng, studies = np.random.default_rng(claims), 1500
    shown = 0
    for _ in range(studies):
        gaps = size + seeds * rng.normal(size=(n, 1)) + images * rng.normal(size=(1, count))
        found = compare(np.zeros((n, count)), gaps + np.zeros((n, count)))
        shown += found.p < 0.05 / claims and found.mean > 0
    assert shown / studies == pytest.approx(power, abs=0.035)


def test_more_claims_more_power_and_more_spread_need_a_larger_difference():
    rng = np.random.default_rng(3)
    one, other = correctness(rng, 5, 300)
    found = compare(one, other)
    assert detectable(found) < detectable(found, claims=2) < detectable(found, claims=6)
    assert detectable(found, power=0.5) < detectable(found) < detectable(found, power=0.95)
    assert detectable(compare(3.0 * one, 3.0 * other)) == pytest.approx(3 * detectable(found))
    assert detectable(compare(one, one)) == 0


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
    one, other = correctness(rng, 6, 200)
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
    assert holm([0.02, 0.02, 0.02]) == pytest.approx([0.06] * 3)
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
        for i, p in enumerate(values):  # and by the closed form: a maximum over the smaller ones
            smaller = [min(1, (values >= q).sum() * q) for q in values if q <= p]
            assert adjusted[i] == pytest.approx(max(smaller))


@pytest.mark.parametrize("wrong", [[0.1, 1.2], [-0.1], [float("nan")]])
def test_what_is_no_p_value_is_refused(wrong):
    with pytest.raises(ValueError, match="numbers in"):
        holm(wrong)


def test_they_are_public():
    assert (mpp.compare, mpp.holm) == (compare, holm)

"""Confidence intervals of paired differences, and p-values corrected for their number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mpp.extras import require


class Comparison(NamedTuple):
    """How much better one arm is than another, seeds and test images both being samples."""

    mean: float
    """Of the differences."""
    low: float
    high: float
    """The two-sided confidence interval."""
    p: float
    """Two-sided, of no difference."""
    std_seeds: float
    """Standard deviation over the seeds of the mean over the images."""
    std_images: float
    """Standard deviation over the images of the mean over the seeds."""
    df: float
    """Degrees of freedom of Student's t, by Welch and Satterthwaite."""


def compare(lower: ArrayLike, higher: ArrayLike, level: float = 0.95) -> Comparison:
    """Compare the correctness of two arms on the same test images by the same seeds.

    With D the differences, n seeds and M images, the variance of their mean is estimated as
    `var(mean over images, n − 1) / n + var(mean over seeds, M − 1) / M`.

    Args:
        lower: `(seeds, images)`, bool or float, e.g. the mean over few-shot draws.
        higher: as `lower`; differences are higher − lower.
        level: of the interval.

    Raises:
        ValueError: if the shapes differ, there are fewer than two seeds or images, or a value is not finite.
        RuntimeError: if SciPy is not installed.
    """
    require("the interval of a comparison", "scipy")
    from scipy.stats import t  # late: it is optional

    one, other = (np.asarray(values, dtype=np.float64) for values in (lower, higher))
    if one.shape != other.shape or one.ndim != 2 or min(one.shape) < 2:
        raise ValueError(
            "compare needs two arrays (seeds, images) of one shape, with two or more of each; found "
            f"{one.shape} and {other.shape}"
        )
    differences = other - one
    if not np.isfinite(differences).all():
        raise ValueError("compare needs finite values: leave out the images that some seed has no prediction for")
    seeds, images = differences.shape
    mean = float(differences.mean())
    std_seeds, std_images = (float(differences.mean(axis).std(ddof=1)) for axis in (1, 0))
    parts = std_seeds**2 / seeds, std_images**2 / images
    error = float(np.sqrt(sum(parts)))
    if error == 0:  # every seed differs alike on every image
        return Comparison(mean, mean, mean, float(mean == 0), 0.0, 0.0, float(seeds - 1))
    df = sum(parts) ** 2 / (parts[0] ** 2 / (seeds - 1) + parts[1] ** 2 / (images - 1))
    half = float(t.ppf((1 + level) / 2, df)) * error
    p = float(2 * t.sf(abs(mean) / error, df))
    return Comparison(mean, mean - half, mean + half, p, std_seeds, std_images, float(df))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number by Holm's step-down method (1979), in the given order.

    Raises:
        ValueError: if one is outside [0, 1].
    """
    values = np.asarray(p_values, dtype=np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p-values are numbers in [0, 1]; found {p_values}")
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)).clip(max=1)
    adjusted = np.empty_like(values)
    adjusted[order] = stepped
    return adjusted.tolist()


def detectable(comparison: Comparison, claims: int = 1, power: float = 0.8, level: float = 0.05) -> float:
    """The true difference that a study with this spread would have shown with probability `power`.

    At the strictest step of Holm's method, the level divided by the number of `claims`.

    Raises:
        RuntimeError: if SciPy is not installed.
    """
    require("the power of a comparison", "scipy")
    from scipy.stats import t  # late: it is optional

    error = (comparison.high - comparison.mean) / float(t.ppf(0.975, comparison.df))
    return error * float(t.ppf(1 - level / (2 * claims), comparison.df) + t.ppf(power, comparison.df))

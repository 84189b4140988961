"""Confidence intervals of paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mpp.extras import require


class Interval(NamedTuple):
    """A mean difference and its two-sided confidence interval."""

    mean: float
    low: float
    high: float


def paired(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Interval:
    """The interval of b − a by Student's t on the differences of each seed, with n − 1 degrees of freedom.

    Raises:
        ValueError: if the pairs do not match, or there is but one.
        RuntimeError: if SciPy is not installed.
    """
    require("the interval of a difference", "scipy")
    from scipy.stats import t  # late: it is optional

    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"an interval needs two or more pairs; found {len(a)} and {len(b)} numbers")
    differences = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    mean = float(differences.mean())
    half = float(t.ppf((1 + level) / 2, len(differences) - 1) * differences.std(ddof=1) / np.sqrt(len(differences)))
    return Interval(mean, mean - half, mean + half)

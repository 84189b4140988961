"""How sure a paired difference is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean difference and its two-sided confidence interval."""

    mean: float
    low: float
    high: float


def paired(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Interval:
    """The interval of b − a by Student's t on the paired differences, with n − 1 degrees of freedom.

    Args:
        a, b: as many numbers each, of the same seeds in the same order.
        level: of confidence.

    Raises:
        ValueError: if the pairs do not match, or there is but one.
        RuntimeError: if SciPy is not installed.
    """
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"an interval needs two or more pairs; found {len(a)} and {len(b)} numbers")
    if not np.isfinite([*a, *b]).all() or not 0 < level < 1:
        raise ValueError(f"an interval needs finite numbers and a level in (0, 1); found {a}, {b}, {level}")
    try:
        from scipy.stats import t
    except ImportError as error:
        raise RuntimeError('intervals need SciPy: pip install "mpp[study]"') from error
    differences = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    mean = float(differences.mean())
    half = float(t.ppf((1 + level) / 2, len(differences) - 1) * differences.std(ddof=1) / np.sqrt(len(differences)))
    return Interval(mean, mean - half, mean + half)

"""What a handful of seeds can and cannot show. Pure functions on plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def smallest_difference(n: int, confidence: float = 0.95) -> float:
    """Return the smallest difference between two cells' means that n seeds each can show.

    In units of the cells' common sample standard deviation: with n = 5 and a std of 0.01, means that lie closer than
    1.46 * 0.01 are not told apart at the 5 % level, whatever is tested afterwards.

    The two-sample t test calls a difference d significant when ``|d| / (s * sqrt(2 / n))`` exceeds the quantile
    ``t(1 - alpha / 2, 2n - 2)`` (Student 1908; see Welch, Biometrika 34, 1947). That is Welch's test where both cells
    have the same std; where they differ, Welch's has fewer degrees of freedom and asks for more. One seed shows
    nothing: infinity.
    """
    if n < 2:
        return math.inf
    return _t_quantile(confidence, 2 * n - 2) * math.sqrt(2 / n)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return Student's t interval (low, high) for the mean of ``values``, in their unit: mean -+ t * s / sqrt(n).

    For a few seeds this is the interval that holds its level; a bootstrap over five values covers 83 % where it
    promises 95 %. Fewer than two values have no interval: (nan, nan).
    """
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    mean = float(np.mean(values))
    half = _t_quantile(confidence, n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return mean - half, mean + half


def _t_quantile(confidence: float, degrees: int) -> float:
    """Return the two-sided quantile of Student's t distribution."""
    from scipy.special import stdtrit  # scipy.stats, which has the same number, takes most of a second to import

    return float(stdtrit(degrees, (1 + confidence) / 2))

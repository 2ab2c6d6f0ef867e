"""Means over subjects, and their confidence intervals.

A subject's value is the mean of all its images (and, where it was trained several times, of all training
seeds), so that what varies within a subject is part of what varies between the values. K subjects.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval; low and high are None where there is one value."""

    mean: float
    low: float | None = None
    high: float | None = None


def mean_interval(
    values: Sequence[float], confidence: float = CONFIDENCE, bounds: tuple[float, float] | None = None
) -> Interval:
    """The mean of K values and its Student t interval, K - 1 degrees of freedom.

    bounds: the least and the greatest value that there can be; the interval is cut there.
    A percentile bootstrap of so few values is too narrow: of 4 normal values it holds the true mean in about
    81 % of cases where 95 % are meant, of 10 in 90 %. The t interval is exact for normal values, and too
    narrow for skewed ones (of 4 lognormal values about 84 %, the bootstrap 69 %).
    """
    sample = np.asarray(values, dtype=np.float64)  # (K,)
    assert sample.ndim == 1 and len(sample), sample.shape
    mean = float(sample.mean())
    if len(sample) == 1:
        return Interval(mean)
    from scipy.stats import t  # takes half a second to import

    half = float(t.ppf((1 + confidence) / 2, len(sample) - 1) * sample.std(ddof=1) / np.sqrt(len(sample)))
    low, high = bounds or (-np.inf, np.inf)
    return Interval(mean, float(max(mean - half, low)), float(min(mean + half, high)))


def paired_interval(
    a: Mapping[Any, float], b: Mapping[Any, float], confidence: float = CONFIDENCE
) -> Interval:
    """The interval of a - b over the subjects, keys of the mappings, that both have; at least one."""
    shared = [subject for subject in a if subject in b]
    return mean_interval([a[subject] - b[subject] for subject in shared], confidence)

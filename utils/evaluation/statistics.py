"""Means over subjects, and how sure one can be of them.

K subjects, R resamples.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95


def bootstrap(
    values: Sequence[float], resamples: int = RESAMPLES, confidence: float = CONFIDENCE, seed: int = 0
) -> dict[str, float | None]:
    """{"mean", "low", "high"}: the mean of K values and its percentile bootstrap interval (Efron 1979).

    The same seed draws the same subjects for every metric and method of K subjects.
    low and high are None for a single value, from which no interval follows.
    """
    sample = np.asarray(values, dtype=np.float64)  # (K,)
    assert sample.ndim == 1 and len(sample), sample.shape
    mean = float(sample.mean())
    if len(sample) == 1:
        return {"mean": mean, "low": None, "high": None}
    drawn = np.random.default_rng(seed).integers(len(sample), size=(resamples, len(sample)))  # (R, K)
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    low, high = np.quantile(sample[drawn].mean(axis=1), tails)
    return {"mean": mean, "low": float(low), "high": float(high)}


def paired_bootstrap(
    a: Mapping[Any, float], b: Mapping[Any, float], **settings: Any
) -> dict[str, float | None]:
    """The bootstrap of a - b over the subjects, keys of the mappings, that both have; at least one."""
    shared = [subject for subject in a if subject in b]
    return bootstrap([a[subject] - b[subject] for subject in shared], **settings)

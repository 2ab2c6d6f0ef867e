"""Sets of features in a plane: principal components fitted once, spread and overlap as numbers.

n features, D their width.
"""

from dataclasses import dataclass

import numpy as np

FLOOR = 1e-12  # added to variances, so that a set on a line has a spread


@dataclass(frozen=True)
class Plane:
    """The first two principal components. mean: (D,); axes: (2, D), unit vectors; explained: their shares of
    the variance."""

    mean: np.ndarray
    axes: np.ndarray
    explained: tuple[float, float]

    def project(self, features: np.ndarray) -> np.ndarray:
        """(n, D) -> (n, 2)."""
        return (features - self.mean) @ self.axes.T


def fit_plane(features: np.ndarray) -> Plane:
    """Of (n, D), n ≥ 3. An axis points to where its largest component, in size, is positive."""
    assert features.ndim == 2 and len(features) >= 3, features.shape
    mean = features.mean(axis=0)
    _, sizes, rows = np.linalg.svd(features - mean, full_matrices=False)
    axes = rows[:2]
    largest = np.abs(axes).argmax(axis=1)
    axes = axes * np.sign(axes[np.arange(2), largest])[:, None]
    shares = sizes**2 / max((sizes**2).sum(), FLOOR)
    return Plane(mean, axes, (float(shares[0]), float(shares[1])))


def _gaussian(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (2,) and covariance (2, 2) of (n, 2)."""
    return points.mean(axis=0), np.cov(points.T) + FLOOR * np.eye(points.shape[1])


def spread(points: np.ndarray) -> float:
    """½ log det Σ of (n, 2), n ≥ 3: a Gaussian's entropy but for a constant, in nats; lower is narrower."""
    return float(0.5 * np.linalg.slogdet(_gaussian(points)[1])[1])


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Bhattacharyya coefficient of the two sets as Gaussians, (n, 2) and (m, 2): 1 for equal, 0 for apart."""
    (mean, cov), (mean_other, cov_other) = _gaussian(one), _gaussian(other)
    middle, step = (cov + cov_other) / 2, mean - mean_other
    volumes = [np.linalg.slogdet(each)[1] for each in (middle, cov, cov_other)]
    distance = step @ np.linalg.solve(middle, step) / 8 + (volumes[0] - (volumes[1] + volumes[2]) / 2) / 2
    return float(np.exp(-max(distance, 0.0)))


def variance(features: np.ndarray) -> float:
    """Of (n, D): the sum of all components' variances."""
    return float(features.var(axis=0, ddof=1).sum())

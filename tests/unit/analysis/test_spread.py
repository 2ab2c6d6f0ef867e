"""The plane, spread and overlap of sets of features, against known values."""

import numpy as np
import pytest

from utils.analysis.spread import fit_plane, overlap, spread, variance

SQUARE = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])  # covariance 4/3 · identity


def test_the_plane_is_that_of_the_largest_variances_with_the_sign_of_the_convention():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(500, 5)) * [0.1, 3.0, 0.1, 1.0, 0.1] + 7
    plane = fit_plane(features)
    for axis, main in zip(plane.axes, (1, 3), strict=True):
        assert np.argmax(np.abs(axis)) == main and axis[main] > 0.99
    mirrored = fit_plane(-features)  # the same axes, though everything else is reversed
    assert np.allclose(plane.axes, mirrored.axes) and np.allclose(plane.mean, -mirrored.mean)
    assert plane.explained[0] == pytest.approx(0.9, abs=0.02) and sum(plane.explained) > 0.99
    assert np.allclose(plane.project(plane.mean[None]), 0)


def test_spread_is_half_the_log_determinant():
    assert spread(SQUARE) == pytest.approx(np.log(4 / 3))
    assert spread(3 * SQUARE) - spread(SQUARE) == pytest.approx(2 * np.log(3))  # a plane's two directions
    assert spread(SQUARE + 5) == pytest.approx(spread(SQUARE))


def test_a_set_on_a_line_has_a_spread():
    assert -30 < spread(np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])) < -10


def test_overlap_is_1_of_equal_sets_and_the_coefficient_of_gaussians():
    assert overlap(SQUARE, SQUARE) == pytest.approx(1)
    moved = overlap(SQUARE, SQUARE + [2, 0])  # exp(−Δ²/(8σ²)) with σ² = 4/3
    assert moved == pytest.approx(np.exp(-(2**2) / (8 * 4 / 3)))
    wider = overlap(SQUARE, 2 * SQUARE)  # det of the mean over the root of the product: 2.5² / 4
    assert wider == pytest.approx((6.25 / 4) ** -0.5)
    assert overlap(SQUARE, SQUARE + 100) < 1e-9
    assert overlap(SQUARE, SQUARE + [2, 0]) == overlap(SQUARE + [2, 0], SQUARE)


def test_variance_sums_over_all_dimensions():
    assert variance(np.array([[0.0, 0.0, 5.0], [2.0, 4.0, 5.0]])) == pytest.approx(2 + 8)

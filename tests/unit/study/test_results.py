"""Words at equal likeness, composition lost, and means over seeds and subjects, on numbers made by hand."""

import pytest

from utils.study.results import (
    Point,
    at_equal_likeness,
    by_subject,
    compare,
    difference_at,
    interval_of,
    loss_of,
    reached,
)

BASE = {name: {"dino_i": 0.0, "obeyed_all": 1.0} for name in ("rex", "mia")}


def point(name: str, subject: str, seed: int, step: int, likeness: float, words: float) -> Point:
    return Point(name, subject, seed, step, {"dino_i": likeness, "obeyed_all": words})


POINTS = [
    point("plain", "rex", 0, 10, 0.4, 0.8),
    point("plain", "rex", 0, 20, 0.8, 0.4),
    point("plain", "rex", 1, 10, 0.4, 0.9),
    point("plain", "rex", 1, 20, 0.8, 0.5),
    point("plain", "mia", 0, 10, 0.5, 1.0),
    point("plain", "mia", 0, 20, 0.6, 0.95),
    point("spl", "rex", 0, 10, 0.2, 1.0),
    point("spl", "rex", 0, 20, 0.6, 0.9),
    point("spl", "mia", 0, 10, 0.5, 0.9),
    point("spl", "mia", 0, 20, 0.5, 0.9),
    point("spl", "gus", 0, 10, 0.5, 0.1),  # whose base is not judged
]


def test_words_are_read_where_a_likeness_is_first_reached():
    curve = [(0.0, 1.0), (0.4, 0.8), (0.8, 0.4), (0.6, 0.9)]
    assert reached(curve, 0.4) == 0.8 and reached(curve, 0.8) == pytest.approx(0.4)
    assert reached(curve, 0.6) == pytest.approx(0.6)  # on the way up, not at the last checkpoint
    with pytest.raises(ValueError, match="above the curve"):
        reached(curve, 0.9)


def test_equal_likeness_is_the_highest_that_both_reach():
    a, b = [(0.0, 1.0), (0.2, 1.0), (0.6, 0.9)], [(0.0, 1.0), (0.4, 0.8), (0.8, 0.4)]
    assert at_equal_likeness(a, b) == pytest.approx(0.9 - 0.6)
    assert at_equal_likeness(b, a) == pytest.approx(0.6 - 0.9)
    assert at_equal_likeness(a, a) == 0


def test_trainings_are_paired_by_subject_and_seed():
    found = compare(POINTS, BASE, "spl", "plain", "obeyed_all")
    assert (found.subjects, found.trainings) == (2, 2)  # seed 1 of rex has no counterpart
    assert found.difference.mean == pytest.approx(((0.9 - 0.6) + (0.9 - 1.0)) / 2)
    # t of one degree of freedom is 12.706; half the distance of two values is their standard error
    assert found.difference.high - found.difference.mean == pytest.approx(12.706 * 0.2, rel=1e-4)


def test_a_subject_s_value_is_the_mean_over_its_seeds():
    points = [p for p in POINTS if p.name == "plain" and p.step == 20]
    assert by_subject(points, "obeyed_all") == {"rex": pytest.approx(0.45), "mia": pytest.approx(0.95)}
    found = interval_of(points, "obeyed_all")
    assert (found.mean, found.low, found.high) == (pytest.approx(0.7), 0.0, 1.0)  # a share is cut there


def test_the_same_step_is_compared_within_subjects():
    found = difference_at(POINTS, "spl", "plain", 10, "obeyed_all")
    assert found.mean == pytest.approx(((1.0 - 0.8) + (0.9 - 1.0)) / 2)  # gus has no counterpart
    assert found.high - found.mean == pytest.approx(12.706 * 0.15, rel=1e-4)
    assert difference_at(POINTS, "spl", "plain", 30, "obeyed_all") is None


def test_composition_is_lost_at_the_first_step_below_a_share_of_the_base_s_words():
    plain = loss_of(POINTS, "plain", BASE, "obeyed_all", 0.1)
    assert (plain.subjects, plain.steps) == (2, (10,))  # rex: a mean of .85 at step 10; mia never
    assert loss_of(POINTS, "spl", BASE, "obeyed_all", 0.11).steps == ()

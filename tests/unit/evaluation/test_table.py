"""Confidence intervals with known answers, and the table made of them."""

import numpy as np
import pytest

from utils.evaluation.folder import Scores
from utils.evaluation.table import Table, as_markdown, build_table
from utils.scores.statistics import Interval, mean_interval, paired_interval


def coverage(draw, mean: float, subjects: int, runs: int = 4000) -> float:
    """The share of intervals, each of `subjects` values of draw(size), that hold the true mean."""
    samples = draw((runs, subjects))
    found = [mean_interval(sample) for sample in samples]
    return float(np.mean([each.low <= mean <= each.high for each in found]))


def test_the_interval_is_student_s():
    # Four values, 3 degrees of freedom: t = 3.18245; their standard deviation is 1, so half is t / 2.
    found = mean_interval([0.0, 0.0, 1.5, 1.5])
    deviation = np.std([0.0, 0.0, 1.5, 1.5], ddof=1)
    assert found.mean == 0.75
    assert found.high - 0.75 == pytest.approx(3.182446 * deviation / 2, rel=1e-6)
    assert found.low + found.high == pytest.approx(1.5)


def test_constant_values_have_an_interval_of_no_width():
    assert mean_interval([0.25] * 7) == Interval(0.25, 0.25, 0.25)


@pytest.mark.parametrize("subjects", [3, 4, 8, 30])
def test_normal_values_are_covered_as_often_as_it_says(subjects: int):
    rng = np.random.default_rng(0)
    assert coverage(lambda size: rng.normal(size=size), 0, subjects) == pytest.approx(0.95, abs=0.012)


def test_skewed_values_are_covered_less_as_the_docstring_says():
    """Four lognormal values: about .84, where a percentile bootstrap reaches about .69."""
    rng = np.random.default_rng(0)
    found = coverage(lambda size: rng.lognormal(size=size), float(np.exp(0.5)), 4)
    assert found == pytest.approx(0.84, abs=0.02)


def test_confidence_widens_and_bounds_cut():
    values = list(np.random.default_rng(3).normal(size=20))
    narrow, wide = mean_interval(values, confidence=0.5), mean_interval(values, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high
    share = mean_interval([1.0, 1.0, 0.9, 0.8], bounds=(0, 1))
    assert share.high == 1 and share.low == pytest.approx(0.7727, abs=1e-4)


def test_one_subject_has_no_interval():
    assert mean_interval([0.3]) == Interval(0.3, None, None)


def test_a_constant_difference_is_certain_however_far_the_subjects_lie_apart():
    a, b = {"x": 0.9, "y": 0.1, "z": 0.5}, {"y": 0.05, "x": 0.85, "w": 7.0}
    found = paired_interval(a, b)
    assert (found.mean, found.low, found.high) == pytest.approx((0.05, 0.05, 0.05))


@pytest.fixture
def table() -> Table:
    models = {"clip_t": "a CLIP", "pres": "a DINO", "obeyed_place": "eyes", "obeyed_all": "eyes"}

    def scores(clip_t: float, images: int) -> Scores:
        metric = {"clip_t": clip_t, "pres": 0.5, "obeyed_place": 1.0, "obeyed_all": 0.0}
        return Scores(metric, models, images)

    found = {
        ("rex", "base"): scores(0.2, 8),
        ("rex", "classdiffusion"): scores(0.3, 8),
        ("mug", "base"): scores(0.4, 6),
        ("mug", "classdiffusion"): scores(0.5, 6),
    }
    return build_table(found, ["rex", "mug"], ["base", "classdiffusion"], [0, 1], {"torch": "2"})


def test_rows_are_means_over_subjects(table):
    assert table.metrics == ["clip_t", "pres", "obeyed_all", "obeyed_place"]
    base, personal = table.rows
    assert (base.method, base.subjects, base.images) == ("base", 2, 14)
    assert base.metric["clip_t"].mean == pytest.approx(0.3)
    # two subjects, one degree of freedom: t = 12.7062, and the mean's standard error is .1
    assert base.metric["clip_t"].low == pytest.approx(0.3 - 1.27062, abs=1e-5)
    assert personal.metric["clip_t"].high == pytest.approx(0.4 + 1.27062, abs=1e-5)
    assert base.metric["pres"] == Interval(0.5, 0.5, 0.5)


def test_differences_are_paired(table):
    (pair,) = table.paired
    assert (pair.a, pair.b) == ("classdiffusion", "base")
    found = pair.metric["clip_t"]
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))


def test_every_subject_has_its_row(table):
    assert [(row.subject, row.method) for row in table.per_subject] == [
        ("rex", "base"),
        ("rex", "classdiffusion"),
        ("mug", "base"),
        ("mug", "classdiffusion"),
    ]
    assert table.per_subject[3].metric["clip_t"] == 0.5


def test_a_score_that_some_subjects_lack_is_taken_over_the_others():
    has = Scores({"clip_t": 0.2, "div": 0.1}, {}, 1)
    lacks = Scores({"clip_t": 0.4}, {}, 1)
    found = {("x", "base"): has, ("y", "base"): lacks, ("x", "m"): lacks, ("y", "m"): lacks}
    table = build_table(found, ["x", "y"], ["base", "m"], [0], {})
    assert table.rows[0].metric["div"].mean == 0.1
    assert "div" not in table.rows[1].metric and "div" not in table.paired[0].metric


def test_a_category_has_rows_of_its_own_subjects():
    found = {(s, "base"): Scores({"clip_t": v}, {}, 2) for s, v in (("x", 0.2), ("y", 0.4), ("z", 0.9))}
    categories = {"object": ["x", "y"], "human": ["z"]}
    table = build_table(found, ["x", "y", "z"], ["base"], [0], {}, categories)
    assert list(table.categories) == ["human", "object"]
    (human,), (thing,) = table.categories.values()
    assert (thing.subjects, thing.images, thing.metric["clip_t"].mean) == (2, 4, pytest.approx(0.3))
    assert human.metric["clip_t"] == Interval(0.9)
    text = as_markdown(table)
    assert "Category human:\n\n| method | subjects | images | clip_t |" in text
    assert "| base | 1 | 2 | 0.900 |" in text


def test_markdown_says_what_the_numbers_are_of(table):
    text = as_markdown(table)
    assert "95 % t interval over subjects" in text
    assert "| method | subjects | images | clip_t | pres ↓ | obeyed_all | obeyed_place |" in text
    row = "| base | 2 | 14 | 0.300 [-0.971, 1.571] | 0.500 [0.500, 0.500] | 0.000 [0.000, 0.000] |"
    assert row in text
    assert "| classdiffusion − base | +0.100 [+0.100, +0.100] |" in text
    assert "| mug | classdiffusion | 0.500 |" in text
    for line in ("- clip_t: a CLIP", "- seeds: 0, 1", "- torch 2"):
        assert line in text.splitlines()

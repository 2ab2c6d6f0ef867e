"""Bootstrap intervals with known answers, and the table made of them."""

import numpy as np
import pytest

from utils.evaluation.statistics import bootstrap, paired_bootstrap
from utils.evaluation.table import as_markdown, build_table


def test_constant_values_have_an_interval_of_no_width():
    assert bootstrap([0.25] * 7) == {"mean": 0.25, "low": 0.25, "high": 0.25}


def test_the_interval_of_zeros_and_ones_is_that_of_the_binomial():
    # 400 coins: the mean of a resample is Binomial(400, 1/2) / 400, so 95 % lie within 1.96 x 0.025.
    found = bootstrap([0.0, 1.0] * 200)
    assert found["mean"] == 0.5
    assert found["low"] == pytest.approx(0.451, abs=0.002)
    assert found["high"] == pytest.approx(0.549, abs=0.002)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        found = bootstrap(rng.normal(size=30), resamples=500)
        hits += found["low"] <= 0 <= found["high"]
    assert 180 <= hits <= 198  # percentile intervals of 30 values cover a little less than 95 %


def test_the_seed_decides_and_confidence_widens():
    values = list(np.random.default_rng(3).normal(size=20))
    assert bootstrap(values) == bootstrap(values) != bootstrap(values, seed=1)
    narrow, wide = bootstrap(values, confidence=0.5), bootstrap(values, confidence=0.99)
    assert wide["low"] < narrow["low"] < narrow["high"] < wide["high"]


def test_one_subject_has_no_interval():
    assert bootstrap([0.3]) == {"mean": 0.3, "low": None, "high": None}


def test_a_constant_difference_is_certain_however_far_the_subjects_lie_apart():
    a, b = {"x": 0.9, "y": 0.1, "z": 0.5}, {"y": 0.05, "x": 0.85, "w": 7.0}
    found = paired_bootstrap(a, b)
    assert found == pytest.approx({"mean": 0.05, "low": 0.05, "high": 0.05})


@pytest.fixture
def table() -> dict:
    models = {"clip_t": "a CLIP", "pres": "a DINO", "obeyed_place": "eyes", "obeyed_all": "eyes"}

    def scores(clip_t: float, images: int) -> dict:
        metric = {"clip_t": clip_t, "pres": 0.5, "obeyed_place": 1.0, "obeyed_all": 0.0}
        return {"metric": metric, "models": models, "images": images}

    found = {
        ("rex", "base"): scores(0.2, 8),
        ("rex", "classdiffusion"): scores(0.3, 8),
        ("mug", "base"): scores(0.4, 6),
        ("mug", "classdiffusion"): scores(0.5, 6),
    }
    table = build_table(found, ["rex", "mug"], ["base", "classdiffusion"])
    return table | {"seeds": [0, 1], "versions": {"torch": "2"}}


def test_rows_are_means_over_subjects(table):
    assert table["metrics"] == ["clip_t", "pres", "obeyed_all", "obeyed_place"]
    base, personal = table["rows"]
    assert (base["method"], base["subjects"], base["images"]) == ("base", 2, 14)
    assert base["metric"]["clip_t"]["mean"] == pytest.approx(0.3)
    assert base["metric"]["clip_t"]["low"] == pytest.approx(0.2)  # two subjects: a quarter draws one twice
    assert personal["metric"]["clip_t"]["high"] == pytest.approx(0.5)
    assert base["metric"]["pres"] == {"mean": 0.5, "low": 0.5, "high": 0.5}


def test_differences_are_paired(table):
    (pair,) = table["paired"]
    assert (pair["a"], pair["b"]) == ("classdiffusion", "base")
    assert pair["metric"]["clip_t"] == pytest.approx({"mean": 0.1, "low": 0.1, "high": 0.1})


def test_every_subject_has_its_row(table):
    assert [(row["subject"], row["method"]) for row in table["per_subject"]] == [
        ("rex", "base"),
        ("rex", "classdiffusion"),
        ("mug", "base"),
        ("mug", "classdiffusion"),
    ]
    assert table["per_subject"][3]["metric"]["clip_t"] == 0.5


def test_a_score_that_some_subjects_lack_is_taken_over_the_others():
    has = {"metric": {"clip_t": 0.2, "div": 0.1}, "models": {}, "images": 1}
    lacks = {"metric": {"clip_t": 0.4}, "models": {}, "images": 1}
    found = {("x", "base"): has, ("y", "base"): lacks, ("x", "m"): lacks, ("y", "m"): lacks}
    table = build_table(found, ["x", "y"], ["base", "m"])
    assert table["rows"][0]["metric"]["div"]["mean"] == 0.1
    assert "div" not in table["rows"][1]["metric"] and "div" not in table["paired"][0]["metric"]


def test_markdown_says_what_the_numbers_are_of(table):
    text = as_markdown(table)
    assert "95 % bootstrap interval over subjects, 10,000 resamples" in text
    assert "| method | subjects | images | clip_t | pres ↓ | obeyed_all | obeyed_place |" in text
    row = "| base | 2 | 14 | 0.300 [0.200, 0.400] | 0.500 [0.500, 0.500] | 0.000 [0.000, 0.000] |"
    assert row in text
    assert "| classdiffusion − base | +0.100 [+0.100, +0.100] |" in text
    assert "| mug | classdiffusion | 0.500 |" in text
    for line in ("- clip_t: a CLIP", "- seeds: 0, 1", "- torch 2"):
        assert line in text.splitlines()

"""The rule that chooses toon's settings."""

import pytest

from scripts.toon.tune import STEP, Flags, centre_of, extensions, grid, name_of, steps_of, tune
from utils.errors import UserError
from utils.training.methods import METHODS


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_rates_and_steps_in_its_settings(method):
    assert centre_of(method)
    assert steps_of(method) % 4 == 0


def test_the_grid_has_three_values_of_each_rate():
    settings = grid({"learning_rate": 1e-4, "token_learning_rate": 1e-2})
    assert len(settings) == 9
    assert sorted({setting["learning_rate"] for setting in settings}) == pytest.approx(
        [1e-4 / STEP, 1e-4, 1e-4 * STEP]
    )


def test_only_a_rate_at_the_end_of_its_three_goes_further():
    centre = {"learning_rate": 1e-4, "token_learning_rate": 1e-2}
    assert list(extensions(centre, centre)) == []
    high = {"learning_rate": 1e-4 * STEP, "token_learning_rate": 1e-2}
    assert list(extensions(high, centre)) == [
        {"learning_rate": pytest.approx(1e-3), "token_learning_rate": 1e-2}
    ]
    low = {"learning_rate": 1e-4, "token_learning_rate": 1e-2 / STEP}
    assert list(extensions(low, centre)) == [
        {"learning_rate": 1e-4, "token_learning_rate": pytest.approx(1e-3)}
    ]


def test_the_rule_extends_the_edge_then_tries_weights_and_puts_the_best_first(monkeypatch, capsys):
    asked = []

    def judged(method, setting, individuals, work, judge):
        """Higher rates score better, λ = 3 best, half of the steps best of all."""
        asked.append(setting)
        top = setting["learning_rate"] + (10 if setting.get("spl_weight") == 3.0 else 0)
        shares = {"obeyed": 0.5, "likeness": 0.5}
        return [
            {"method": method, "setting": setting, "steps": n, "score": top - abs(n - 150)} | shares
            for n in (75, 150, 225, 300)
        ]

    monkeypatch.setattr("scripts.toon.tune.points_of", judged)
    points = tune("classdiffusion", [], None, None)
    centre = centre_of("classdiffusion")
    assert len(asked) == 9 + 2 + 4  # the row's rate does not matter here, so the first, lowest one is best
    assert asked[9]["learning_rate"] == pytest.approx(centre["learning_rate"] * 10)
    assert points[0]["steps"] == 150
    assert points[0]["setting"]["spl_weight"] == 3.0
    assert len(points) == 4 * len(asked)
    assert name_of(points[0]["setting"]) in capsys.readouterr().out


def test_an_unknown_method_is_refused():
    with pytest.raises(UserError, match="nonsense"):
        Flags(methods="kv_only,nonsense")

"""The rule that chooses toon's settings."""

import pytest

from scripts.toon.judge.tuning_training import Individual, steps_of
from scripts.toon.tune import (
    STEP,
    Flags,
    centre_of,
    extensions,
    grid,
    inherited,
    name_of,
    tune,
)
from utils.common.errors import UserError
from utils.common.files import write_json
from utils.config.methods import METHODS


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


def test_the_rule_extends_the_edge_then_tries_weights_and_puts_the_best_first(tmp_path, monkeypatch, capsys):
    asked = []

    def judged(method, setting, individuals, work, judge):
        """Higher rates score better, a weight of 3 best, half of the steps best of all."""
        asked.append(setting)
        top = setting["learning_rate"] + (10 if setting.get("prior_loss_weight") == 3.0 else 0)
        shares = {"obeyed": 0.5, "likeness": 0.5}
        return [
            {"method": method, "setting": setting, "steps": n, "score": top - abs(n - 150), "individuals": []}
            | shares
            for n in (75, 150, 225, 300)
        ]

    monkeypatch.setattr("scripts.toon.tune.points_of", judged)
    points = tune("dreambooth", [], None, None, tmp_path)
    centre = centre_of("dreambooth")
    assert len(asked) == 3 + 1 + 4
    assert asked[3]["learning_rate"] == pytest.approx(centre["learning_rate"] * 10)
    assert points[0]["steps"] == 150
    assert points[0]["setting"]["prior_loss_weight"] == 3.0
    assert len(points) == 4 * len(asked)
    assert name_of(points[0]["setting"]) in capsys.readouterr().out

    asked.clear()
    assert tune("dreambooth", [], None, None, tmp_path) == points  # from the file, on any machine
    assert asked == []

    tune("dreambooth", [Individual(0, "dog", tmp_path)], None, None, tmp_path)
    assert len(asked) == 8  # points of no individual are not those of one


def test_points_that_only_earlier_runs_tried_are_kept(tmp_path, monkeypatch):
    shares = {"steps": 75, "score": 9, "obeyed": 1, "likeness": 1, "individuals": []}
    elsewhere = {"method": "xti", "setting": {"learning_rate": 7.0}} | shares
    write_json(tmp_path / "xti.json", {"points": [elsewhere]})
    monkeypatch.setattr(
        "scripts.toon.tune.points_of",
        lambda method, setting, *others: [{"setting": setting} | shares | {"score": 1}],
    )
    points = tune("xti", [], None, None, tmp_path)
    assert points[-1] == elsewhere
    assert [point["score"] for point in points[:-1]] == [1, 1, 1, 1]  # the best by the rule comes first


def test_a_recorded_point_is_not_computed_again_for_the_rounding_of_its_rate(tmp_path, monkeypatch):
    shares = {"steps": 75, "score": 1, "obeyed": 1, "likeness": 1, "individuals": []}
    (centre,) = centre_of("xti").values()
    recorded = [
        {"setting": {"learning_rate": centre * f}} | shares for f in (0.997 / STEP, 1.004, 1.02 * STEP)
    ]
    write_json(tmp_path / "xti.json", {"points": recorded})
    asked = []

    def judged(method, setting, individuals, work, judge):
        asked.append(setting["learning_rate"])
        return [{"method": method, "setting": setting} | shares | {"score": 0}]

    monkeypatch.setattr("scripts.toon.tune.points_of", judged)
    tune("xti", [], None, None, tmp_path)
    assert asked[0] == pytest.approx(centre * STEP)  # 2 % off is another rate
    assert asked[1] == pytest.approx(centre * 0.997 / STEP / STEP) and len(asked) == 2


def test_a_method_that_adds_a_loss_takes_the_rates_and_tries_weights_alone(tmp_path, monkeypatch):
    best = {"learning_rate": 4e-4, "token_learning_rate": 2e-3}
    write_json(tmp_path / "kv_only.json", {"points": [{"setting": best}]})
    asked = []

    def judged(method, setting, individuals, work, judge):
        asked.append(setting)
        shares = {"score": 1, "obeyed": 1, "likeness": 1}
        return [{"method": method, "setting": setting, "steps": 75, "individuals": []} | shares]

    monkeypatch.setattr("scripts.toon.tune.points_of", judged)
    tune("classdiffusion", [], None, None, tmp_path)
    assert asked == [best, *(best | {"spl_weight": value} for value in (0.1, 0.3, 3.0, 10.0))]
    # --scale_lr doubles the rate of a batch that class images double
    assert inherited("custom_diffusion", tmp_path) == {"learning_rate": 2e-4, "token_learning_rate": 1e-3}


def test_a_method_whose_rates_are_not_known_yet_is_refused(tmp_path):
    with pytest.raises(UserError, match="tune it first"):
        inherited("classdiffusion", tmp_path)


def test_an_unknown_method_is_refused():
    with pytest.raises(UserError, match="nonsense"):
        Flags(methods="kv_only,nonsense")


def test_the_plot_shows_every_point_of_the_methods_that_were_tuned(tmp_path, monkeypatch):
    from scripts.toon.judge import tuning_plot

    points = [{"obeyed": 0.9, "likeness": 0.5}, {"obeyed": 0.8, "likeness": 0.6}]
    write_json(tmp_path / "xti.json", {"points": points})
    drawn = []
    monkeypatch.setattr(tuning_plot, "save_clouds", lambda panels, labels, stem, shared: drawn.extend(panels))
    tuning_plot.draw_points(tmp_path)
    (_, [every]), (_, [best]) = drawn
    assert every.points.tolist() == [[90.0, 0.5], [80.0, 0.6]]
    assert best.points.tolist() == [[90.0, 0.5]]

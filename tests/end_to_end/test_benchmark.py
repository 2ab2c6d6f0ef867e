"""scripts.benchmark, on few pictures and few steps."""

import re

import pytest

from scripts import benchmark
from tests.tiny_scorers import write_scorers
from utils.errors import UserError


def test_scoring_is_timed_model_by_model(tmp_path, capsys):
    models = [f"--{name}={model}" for name, model in write_scorers(tmp_path).items()]
    benchmark.main(["evaluate", "--pictures=60", *models])
    told = capsys.readouterr().out
    found = re.findall(r"^(\d+) pictures: [\d.]+ s, [\d.]+ images/s, peak (\d+) MiB", told, re.MULTILINE)
    assert [int(count) for count, _ in found] == [15, 60]
    assert 50 < int(found[0][1]) <= int(found[1][1])
    parts = re.findall(r"^  (\w+)[^:]*: [\d.]+ s$", told, re.MULTILINE)
    assert sorted(parts) == ["BLIP", "CLIP", "CLIP", "DINO", "files", "recogniser"]


def test_a_step_and_a_picture_are_timed(capsys):
    benchmark.main(["train", "--steps=1", "--pictures=1", "--num_inference_steps=2"])
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"training on toon: -?[\d.]+ s/step of batch 2, peak \d+ MiB", lines[-2])
    assert re.match(r"inference: [\d.]+ s/picture at 2 steps, peak \d+ MiB", lines[-1])


def test_numbers_that_time_nothing_are_told(monkeypatch):
    monkeypatch.setattr(benchmark, "Scorer", None)
    with pytest.raises(UserError, match="--pictures 0: give a number of at least 1"):
        benchmark.main(["evaluate", "--pictures=0"])

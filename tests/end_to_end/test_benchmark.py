"""scripts.benchmark, on few images and few steps."""

import json
import re

import pytest

from scripts import benchmark
from scripts.speed import compare, growth, scoring
from tests.tiny_scorers import write_scorers
from utils.common.errors import UserError


def test_scoring_is_timed_model_by_model(tmp_path, capsys):
    models = [f"--{name}={model}" for name, model in write_scorers(tmp_path).items()]
    benchmark.main(["evaluate", "--images=60", *models])
    said = capsys.readouterr().out
    found = re.findall(r"^(\d+) images: [\d.]+ s, [\d.]+ images/s, peak (\d+) MiB", said, re.MULTILINE)
    assert [int(count) for count, _ in found] == [15, 60]
    assert 50 < int(found[0][1]) <= int(found[1][1])
    parts = re.findall(r"^  (\w+)[^:]*: [\d.]+ s$", said, re.MULTILINE)
    assert sorted(parts) == ["BLIP", "CLIP", "CLIP", "DINO", "files", "recogniser"]


def test_our_step_beside_the_published_one(tmp_path, capsys):
    base, out = tmp_path / "base", tmp_path / "train.jsonl"
    flags = ["--base=tiny", "--rounds=2", "--variants=ours fp32 + pool", f"--work_dir={base}"]
    benchmark.main(["train", *flags, f"--json={out}"])
    (line,) = out.read_text().splitlines()
    ours, reference = json.loads(line)["records"]
    assert (ours["variant"], reference["variant"]) == ("ours fp32 + pool", "reference fp32")
    assert ours["loss"] == pytest.approx(reference["loss"], rel=1e-5) and 3 < ours["loss"] < 7
    assert ours["loss_difference"] == pytest.approx(abs(ours["loss"] - reference["loss"]))
    assert len(ours["seconds"]) == len(ours["ratios"]) == 2 and ours["encoded"] == 5
    pairs = zip(ours["seconds"], reference["seconds"], strict=True)
    assert ours["ratios"] == pytest.approx([other / own for own, other in pairs])
    assert ours["flop"] < reference["flop"]  # the autoencoder's part
    assert ours["checkpoint_bytes"] < reference["checkpoint_bytes"]
    assert ours["peak_bytes"] > 2**27 and 0 < ours["of_ceiling"] < 1
    assert "matrix product: fp32" in capsys.readouterr().out


def test_growth_is_a_table_and_a_plot(tmp_path, monkeypatch, capsys):
    points = [
        {"axis": axis, "batch_size": batch, "concepts": 1, "side": 16, "processes": processes}
        for axis, batch, processes in (("batch_size", 4, 1), ("processes", 2, 2))
    ]
    monkeypatch.setattr(growth, "points", lambda base, side: points)
    flags = ["--base=tiny", "--rounds=1", f"--work_dir={tmp_path / 'base'}", f"--output_dir={tmp_path}"]
    benchmark.main(["growth", *flags])
    table = (tmp_path / "growth_tiny.md").read_text().splitlines()
    assert [line.split(" | ")[1] for line in table[2:]] == ["4", "2"]
    assert table[3].startswith("| processes | 2 | 1 | 16 | 2 | ")
    assert "processes" in (tmp_path / "growth_tiny.svg").read_text()
    assert len(json.loads(capsys.readouterr().out.splitlines()[-1])["records"]) == 2


def test_growth_varies_one_thing_at_a_time():
    middle = {"batch_size": 2, "concepts": 1, "side": 512, "processes": 1}
    for point in growth.points("sd15", 512):
        axis = point.pop("axis")
        assert {name for name in middle if point[name] != middle[name]} <= {axis}


def test_sampling_with_a_concept_is_timed_beside_the_base(tmp_path, capsys):
    flags = ["--base=tiny", "--rounds=1", "--num_inference_steps=2", f"--work_dir={tmp_path}"]
    benchmark.main(["sample", *flags])
    assert re.search(r"^ratio: [\d.]+ \(", capsys.readouterr().out, re.MULTILINE)


def test_a_variant_that_is_none_is_refused(monkeypatch):
    monkeypatch.setattr(compare, "ceiling", None)
    with pytest.raises(UserError, match="--variants 'fp99' is not one of reference fp32, ours fp32,"):
        benchmark.main(["train", "--variants=ours fp32,fp99"])


def test_numbers_that_time_nothing_are_reported(monkeypatch):
    monkeypatch.setattr(scoring, "Scorer", None)
    with pytest.raises(UserError, match="--images 0: give a number of at least 1"):
        benchmark.main(["evaluate", "--images=0"])

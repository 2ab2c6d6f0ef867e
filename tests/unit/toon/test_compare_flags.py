"""What flags change on toon, pair by pair."""

import json
from pathlib import Path

import pytest

from scripts.toon import compare_flags
from scripts.toon.judge import tuning_judge
from scripts.toon.judge.tuning_training import Individual


def test_both_sides_are_the_same_but_for_the_flags_and_differences_are_paired(tmp_path, monkeypatch):
    trained = []

    def train(method, flags, each, folder, classes):
        trained.append((each.number, *flags))
        folder.mkdir(parents=True)

    def judge_of(base):
        def judge(method, each, concept: Path):
            better = "--ema_decay=0.9" in concept.parent.name
            obeyed = 0.01 * each.number + (0.25 if better else 0.0)
            return {"obeyed": obeyed, "likeness": 0.5, "score": 0.5, "dino_i": 0.5}

        return judge

    monkeypatch.setattr(compare_flags, "train", train)
    monkeypatch.setattr(compare_flags, "individual", lambda n, folder: Individual(n, "dog", folder))
    monkeypatch.setattr(tuning_judge, "Judge", judge_of)
    flags = ["--flags=--ema_decay=0.9", "--both=--no_noaug", "--individuals=2", f"--output_dir={tmp_path}"]
    compare_flags.main(flags)
    assert trained == [
        (number, "--no_noaug", *more) for number in (10, 11) for more in ([], ["--ema_decay=0.9"])
    ]
    result = json.loads((tmp_path / "kv_only_--no_noaug_--ema_decay=0.9.json").read_text())
    assert result["obeyed"]["as_set"] == pytest.approx(0.105)
    assert result["obeyed"]["difference"] == pytest.approx({"mean": 0.25, "low": 0.25, "high": 0.25})
    assert result["likeness"]["difference"]["mean"] == 0
    compare_flags.main(flags)
    assert len(trained) == 4, "what is judged is not trained again"

"""Drift in the log and the chosen checkpoint: values, resume, and that training stays the same."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.tiny_scorers import write_scorers
from utils.bases import registry
from utils.bases.registry import Base, Sampling
from utils.common.errors import UserError

KEYS = ["drift_layers", "drift_prediction", "drift_relative"]
EVERY = {"max_train_steps": 4, "checkpointing_steps": 1, "method": "kv_only"}


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_drift_is_logged_every_n_steps_and_changes_nothing_else(train, tmp_path):
    plain = train(tmp_path / "plain", **EVERY)
    measured = train(tmp_path / "measured", **EVERY, drift_steps=3)
    assert weights(plain) == weights(measured)
    lines = log(measured)
    assert [line["step"] for line in lines if "drift_prediction" in line] == [3, 4]  # and the last step
    assert all(list(line)[-3:] == KEYS for line in lines[2:])
    for before, line in zip(log(plain), lines, strict=True):
        assert before == {name: value for name, value in line.items() if name not in KEYS}
    assert 0 < lines[2]["drift_layers"] < lines[3]["drift_layers"]
    assert 0 < lines[2]["drift_prediction"] < lines[3]["drift_prediction"]
    assert not (measured / "selection.json").exists()


def test_tokens_alone_do_not_drift(train, tmp_path):
    out = train(tmp_path, method="textual_inversion", instance_prompt=None, drift_steps=2)
    assert [log(out)[-1][key] for key in KEYS] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("criterion", "key"), [("drift", "drift_prediction"), ("error", "error")])
def test_the_best_checkpoint_is_the_result(train, tmp_path, criterion, key):
    out = train(tmp_path, **EVERY, select_checkpoint=criterion)
    choice = json.loads((out / "selection.json").read_text())
    values = {line["step"]: line[key] for line in log(out)}
    assert choice["values"] == {str(step): value for step, value in values.items()} and len(values) == 4
    assert choice["step"] == min(values, key=values.get)
    assert choice["step"] == {"drift": 1, "error": 4}[criterion]  # the one grows, the other falls
    assert weights(out) == {
        name: content
        for name, content in weights(out / f"checkpoint-{choice['step']}").items()
        if name != "training_state.safetensors"
    }


def test_a_resumed_run_chooses_as_an_unbroken_one(train, tmp_path):
    settings = EVERY | {"select_checkpoint": "spl", "checkpointing_steps": 2, "method": "classdiffusion"}
    whole = train(tmp_path / "whole", **settings)
    half = train(tmp_path / "half", **settings | {"max_train_steps": 3})
    assert log(half)[2]["distance"] > 0  # the last step of that run
    resumed = train(tmp_path / "half", **settings, resume_from_checkpoint="latest")
    assert weights(whole) == weights(resumed)
    steps = [2, 4]
    assert [line["distance"] for line in log(resumed) if line["step"] in steps] == [
        line["distance"] for line in log(whole) if line["step"] in steps
    ]
    assert json.loads((whole / "selection.json").read_text()) == json.loads(
        (resumed / "selection.json").read_text()
    )
    assert load_file(whole / "new1.safetensors")["<new1>"].isfinite().all()


def test_checkpoints_without_the_value_are_refused_before_training_goes_on(train, tmp_path):
    train(tmp_path, **EVERY)
    with pytest.raises(UserError, match="checkpoint-1 was saved without its drift_prediction"):
        train(
            tmp_path,
            **EVERY | {"max_train_steps": 5},
            select_checkpoint="drift",
            resume_from_checkpoint="latest",
        )


def test_validation_images_choose(train, tmp_path, tiny_base, monkeypatch):
    scorers = write_scorers(tmp_path / "scorers")
    row = Base("tiny", str(tiny_base), judges=scorers, sampling=Sampling(2, 3.0, 0.0))
    monkeypatch.setitem(registry.BASES, "tiny", row)
    out = train(
        tmp_path / "run",
        **EVERY,
        select_checkpoint="validation",
        validation_prompt="a <new1> dog on the beach",
        num_validation_images=2,
        pretrained_model_name_or_path="tiny",
    )
    values = {line["step"]: line["validation"] for line in log(out)}
    assert json.loads((out / "selection.json").read_text())["step"] == max(values, key=values.get)
    assert sorted(path.name for path in (out / "validation").iterdir()) == [
        f"step-0000{i}" for i in (1, 2, 3, 4)
    ]

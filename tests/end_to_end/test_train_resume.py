"""Stopped and resumed: the same bits as an unbroken run."""

import math

import pytest

from tests.end_to_end.training import KV_FILE, apart, files_in, learned, records
from utils.common.errors import UserError


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("levers", [{}, {"latent_pool": 1, "low_memory": True}])
def test_resumed_run_is_the_unbroken_one(train, tmp_path, quick_sampling, prior, levers):
    settings = dict(hflip=True, checkpointing_steps=2, lr_scheduler="constant_with_warmup", lr_warmup_steps=3)
    settings |= levers
    if prior:
        settings |= dict(with_prior_preservation=True, class_prompt="a dog", num_class_images=3)
    whole = train(tmp_path / "whole", max_train_steps=4, **settings)
    broken = train(tmp_path / "broken", max_train_steps=2, **settings)
    assert len(records(broken)) == 2
    train(broken, max_train_steps=4, resume_from_checkpoint="latest", **settings)
    assert files_in(whole).keys() == files_in(broken).keys()
    assert (whole / "log.jsonl").read_bytes() == (broken / "log.jsonl").read_bytes()
    for name in (KV_FILE, "new1.safetensors", "checkpoint-4/training_state.safetensors"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes(), name
    assert [line["lr_cross_attention_kv"] for line in records(broken)] == pytest.approx(
        [0, 1e-3 / 3, 2e-3 / 3, 1e-3]
    )


def test_resume_in_the_middle_of_a_schedule_from_a_path(train, tmp_path):
    settings = dict(
        lr_scheduler="cosine", max_train_steps=4, checkpointing_steps=1, gradient_accumulation_steps=2
    )
    whole = train(tmp_path / "whole", **settings)
    rest = train(tmp_path / "rest", resume_from_checkpoint=whole / "checkpoint-1", **settings)
    assert apart(learned(whole), learned(rest)) == 0
    assert records(rest) == records(whole)[1:]
    rate = 1e-3 * 0.5 * (1 + math.cos(math.pi * 3 / 4))
    assert records(whole)[-1]["lr_cross_attention_kv"] == pytest.approx(rate)
    with pytest.raises(UserError, match="max_train_steps was 4, is 5"):
        train(whole, **settings | dict(max_train_steps=5), resume_from_checkpoint="latest")


def test_resume_latest_without_a_checkpoint_starts_anew(train, tmp_path):
    fresh = train(tmp_path / "fresh")
    asked = train(tmp_path / "asked", resume_from_checkpoint="latest")
    assert apart(learned(fresh), learned(asked)) == 0 and records(fresh) == records(asked)
    train(asked, resume_from_checkpoint="latest")  # nothing is left to do
    assert records(asked) == records(fresh) and apart(learned(fresh), learned(asked)) == 0


def test_resume_with_other_settings_is_refused(train, tmp_path):
    out = train(tmp_path)
    before = files_in(out)
    with pytest.raises(UserError, match="learning_rate was 0.001, is 0.01, seed was 0, is 5; give the same"):
        train(out, seed=5, learning_rate=1e-2, resume_from_checkpoint="latest")
    with pytest.raises(UserError, match="checkpoint-7 is not a folder: give 'latest' or a whole checkpoint"):
        train(out, resume_from_checkpoint=out / "checkpoint-7")
    with pytest.raises(UserError, match="checkpoint-2: it is beyond --max_train_steps 1"):
        train(out, max_train_steps=1, resume_from_checkpoint="latest")
    assert files_in(out) == before


def test_checkpoints_total_limit_and_those_of_an_earlier_run(train, tmp_path):
    def left() -> list[str]:
        return sorted(path.name for path in tmp_path.glob("checkpoint-*"))

    train(tmp_path, max_train_steps=4, checkpointing_steps=1, checkpoints_total_limit=2)
    assert left() == ["checkpoint-3", "checkpoint-4"]
    # Of a run that was killed before it removed the third: it is gone when the run goes on.
    settings = {"max_train_steps": 4, "checkpointing_steps": 1, "resume_from_checkpoint": "latest"}
    train(tmp_path, checkpoints_total_limit=1, **settings)
    assert left() == ["checkpoint-4"]
    before = files_in(tmp_path)
    with pytest.raises(UserError, match=r"holds a run .*--resume_from_checkpoint latest.*--overwrite"):
        train(tmp_path, max_train_steps=2, seed=1)
    assert files_in(tmp_path) == before
    train(tmp_path, max_train_steps=2, checkpoints_total_limit=1, seed=1, overwrite=True)
    assert left() == ["checkpoint-2"] and len(records(tmp_path)) == 2


def test_loss_that_is_not_finite_stops_the_run(train, tmp_path):
    with pytest.raises(
        FloatingPointError, match=r"step \d: loss_denoise \S+, loss_spl \S+, loss \S+;"
    ) as stop:
        train(tmp_path, learning_rate=1e30, checkpointing_steps=1, max_train_steps=5)
    step = int(str(stop.value).removeprefix("step ").partition(":")[0])
    assert step >= 2 and ("nan" in str(stop.value) or "inf" in str(stop.value))
    assert [line["step"] for line in records(tmp_path)] == list(range(1, step))
    assert (tmp_path / f"checkpoint-{step - 1}" / "training_state.safetensors").is_file()
    assert not (tmp_path / KV_FILE).exists()

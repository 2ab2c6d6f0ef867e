"""Runs with other optimizers, averages and all of the cross-attention resume bit for bit."""

import importlib.util

import pytest
import torch

from tests.end_to_end.training import apart, learned, records
from utils.bases import load_pipeline
from utils.common.errors import UserError
from utils.concepts.load import load_concept
from utils.config.optimizers import OPTIMIZERS
from utils.training.checkpoints import checkpoints
from utils.training.state import STATE_FILE, load_averages

RUNS = {
    "adamw8bit": {"optimizer": "adamw8bit"},
    "adamw8bit unet": {"optimizer": "adamw8bit", "method": "kv_only", "trains": "unet+token_rows"},
    "ema": {"ema_decay": 0.5},
    "ema unet": {"ema_decay": 0.5, "method": "kv_only", "trains": "unet+token_rows"},
    "crossattn": {"freeze_model": "crossattn"},
}


@pytest.mark.parametrize("name", RUNS)
def test_resumes_bit_for_bit(train, tmp_path, name):
    package = OPTIMIZERS[RUNS[name].get("optimizer", "adamw")].package
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    whole = train(tmp_path / "whole", max_train_steps=5, **RUNS[name])
    train(tmp_path / "cut", max_train_steps=3, checkpointing_steps=3, **RUNS[name])
    cut = train(tmp_path / "cut", max_train_steps=5, resume_from_checkpoint="latest", **RUNS[name])
    assert records(cut) == records(whole) and len(records(whole)) == 5
    assert apart(learned(cut), learned(whole)) == 0
    states = [next(f for f in checkpoints(folder) if f.name == "checkpoint-5") for folder in (cut, whole)]
    assert states[0].joinpath(STATE_FILE).read_bytes() == states[1].joinpath(STATE_FILE).read_bytes()


def test_the_average_is_saved_and_training_is_not_changed_by_it(train, tmp_path):
    plain = train(tmp_path / "plain", max_train_steps=4)
    ema = train(tmp_path / "ema", max_train_steps=4, ema_decay=0.9)
    losses = [[line["loss"] for line in records(folder)] for folder in (plain, ema)]
    assert losses[0] == losses[1]
    average = load_averages(ema / "checkpoint-4", _shapes(ema))
    assert torch.equal(learned(ema)["<new1>"], average["token_rows/rows"][0])
    assert apart(learned(plain), learned(ema)) > 1e-6


def _shapes(folder):
    """What the run trained, from its own checkpoint."""
    from utils.common.tensor_files import read_tensors

    stored = read_tensors(folder / "checkpoint-4" / STATE_FILE)
    return {k.removeprefix("average/"): v for k, v in stored.items() if k.startswith("average/")}


def test_crossattn_is_saved_read_back_and_in_effect(train, tiny_base, tmp_path):
    out = train(tmp_path / "out", freeze_model="crossattn", max_train_steps=3)
    base, pipeline = load_pipeline(tiny_base, "cpu"), load_pipeline(tiny_base, "cpu")
    loaded = load_concept(pipeline, out)
    assert len(loaded.merged) == 20
    for part in ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "to_out.0.bias"):
        name = f"mid_block.attentions.0.transformer_blocks.0.attn2.{part}"
        assert not torch.equal(base.unet.get_parameter(name), pipeline.unet.get_parameter(name)), part


def test_crossattn_of_a_method_without_it_is_refused(train, tmp_path):
    with pytest.raises(UserError, match="--freeze_model crossattn has no effect on what --method textual"):
        train(tmp_path / "out", method="textual_inversion", freeze_model="crossattn", instance_prompt=None)

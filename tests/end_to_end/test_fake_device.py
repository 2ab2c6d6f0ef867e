"""Training on a device that is not there: what is left on the CPU is found, and what waits is counted."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

import train_classdiffusion
from tests.fake_device import DEVICE, FakeDevice
from utils.bases.registry import BASES
from utils.common.files import read_json
from utils.config.methods import METHODS
from utils.config.train_config import parse_config
from utils.training.run import begin

OTHERS = {
    "SPL at the modifier": {"spl_pool": "modifier"},
    "class images": {"with_prior_preservation": True},
    "output preservation": {"dop_weight": 0.1},
    "distance from the start": {"l2_weight": 0.1},
    "masked words": {"mlm_weight": 1e-3, "pretrained_model_name_or_path": "toon", "initializer_token": None},
    "averages": {"ema_decay": 0.9},
    "pool": {"latent_pool": 2},
    "masked images": {"masked_loss": True},
    "two micro-steps": {"gradient_accumulation_steps": 2},
    "low memory": {"low_memory": True},
    "the text encoder": {"trains": "text_encoder+cross_attention_kv"},
}
CASES = {name: {"method": name} for name in METHODS} | OTHERS


@pytest.fixture
def steps(dog_flags, pictures, tmp_path, monkeypatch) -> Callable[..., list[list[str]]]:
    """steps(**settings): the waits of each training step on the fake device."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(Accelerator, "device", property(lambda self: DEVICE))
    monkeypatch.setattr("utils.bases.families.choose_device_dtype", lambda *_: (DEVICE, torch.float32))
    autocast = torch.autocast  # which knows no meta device
    monkeypatch.setattr(
        torch,
        "autocast",
        lambda kind, **how: contextlib.nullcontext() if kind == "meta" else autocast(kind, **how),
    )

    def run_steps(**settings) -> list[list[str]]:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        method = METHODS[settings.get("method", "classdiffusion")]
        if any(stage.prior for stage in method.stages) or settings.get("with_prior_preservation"):
            classes = {"class_data_dir": pictures("class", 2), "class_prompt": "a photo of a dog"}
            settings |= classes | {"num_class_images": 2}
        if method.captions == "templates":
            settings["instance_prompt"] = None
        if method.start == "word":
            settings["initializer_token"] = "ktn"
        config = parse_config(dog_flags(tmp_path, **settings))
        waits = []
        with FakeDevice() as device:
            run = train_classdiffusion.set_up(config)
            for stage, first, last in config.plan():
                at = begin(run, stage, first, last)
                for step in range(first, last + 1):
                    device.waits = []
                    train_classdiffusion.update(run, at, step, False)
                    waits.append(device.waits)
        return waits

    return run_steps


@pytest.mark.parametrize("case", CASES)
def test_a_step_leaves_nothing_on_the_cpu_and_waits_once(steps, case, monkeypatch):
    # The fake device has no numbers to compare with those that the contextualizer was made for.
    digest = read_json(Path(BASES["toon"].contextualizer) / "config.json")["text_encoder"]
    monkeypatch.setattr("utils.losses.contextualizer.text_digest", lambda _: digest)
    monkeypatch.setattr(
        "utils.learners.mapper.MARK", 1.0
    )  # what is read of it, so that captions have a token
    for waits in steps(**CASES[case]):
        # neti's captions are encoded in the UNet, where it is read which of them have a token.
        assert len(waits) == (2 if case == "neti" else 1), "\n".join(waits)


def test_a_tensor_that_is_left_on_the_cpu_is_found():
    with FakeDevice() as device:
        there = torch.ones(2, device=DEVICE)
        with pytest.raises(RuntimeError, match="has tensors on meta and on cpu"):
            there + torch.ones(2)
        assert (there + 1).sum().item() == 1 and there.tolist() == [1, 1] and there.cpu().equal(torch.ones(2))
    assert [wait.split()[0] for wait in device.waits] == [
        "aten._local_scalar_dense.default",
        "aten._to_copy.default",
        "aten._to_copy.default",
    ]

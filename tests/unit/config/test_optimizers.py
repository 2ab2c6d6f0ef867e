"""The optimizer of another package and the average of what trains: what each one does."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch

from utils.common.errors import UserError
from utils.config import optimizers
from utils.config.optimizers import OPTIMIZERS
from utils.config.train_config import TrainConfig
from utils.training.averages import Averages

SETTINGS = SimpleNamespace(adam_beta1=0.9, adam_beta2=0.99, adam_epsilon=1e-8, adam_weight_decay=0.0)
NEEDED = {"instance_data_dir": "x", "cls_token": "dog"}


def installed(name: str) -> None:
    if importlib.util.find_spec(OPTIMIZERS[name].package) is None:
        pytest.skip(f"{OPTIMIZERS[name].package} is not installed")


def descend(optimizer, value: torch.nn.Parameter, steps: int) -> None:
    """Towards 3 in every number."""
    for _ in range(steps):
        optimizer.zero_grad()
        (value - 3).square().sum().backward()
        optimizer.step()


def test_8_bit_adamw_goes_where_adamw_goes_with_a_quarter_of_its_memory():
    installed("adamw8bit")
    values = {name: torch.nn.Parameter(torch.zeros(64, 128)) for name in ("adamw", "adamw8bit")}
    memory = {}
    for name, value in values.items():
        optimizer = OPTIMIZERS[name].build([{"params": [value], "lr": 0.05}], SETTINGS)
        descend(optimizer, value, 100)
        state = [v for v in optimizer.state[value].values() if isinstance(v, torch.Tensor) and v.numel() > 1]
        memory[name] = sum(v.numel() * v.element_size() for v in state)
    assert (values["adamw"] - values["adamw8bit"]).abs().max() < 0.1 and values["adamw8bit"].min() > 2.5
    assert memory["adamw"] == 8 * 64 * 128
    assert memory["adamw8bit"] < 0.3 * memory["adamw"]  # the rest: a scale for each block of 256


def test_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr(optimizers, "find_spec", lambda module: None)
    with pytest.raises(UserError, match="--optimizer adamw8bit needs bitsandbytes: pip install bitsandbytes"):
        TrainConfig(optimizer="adamw8bit", **NEEDED)


def test_average_by_hand_and_in_place():
    value = torch.nn.Parameter(torch.tensor([1.0]))
    averages = Averages({"rows": {"a": value}}, decay=0.2)
    expected = 1.0
    for step, new in enumerate((2.0, 4.0, 8.0, 16.0)):
        value.data.fill_(new)
        averages.update()
        decay = min(0.2, (1 + step) / (10 + step)) if step else 0.0
        expected = decay * expected + (1 - decay) * new
    assert averages.tensors["rows/a"].item() == pytest.approx(expected) and expected < 16
    with averages.in_place():
        assert value.item() == pytest.approx(expected)
    assert value.item() == 16
    other = Averages({"rows": {"a": torch.nn.Parameter(torch.zeros(1))}}, decay=0.2)
    other.load(averages.tensors, 4)
    assert other.tensors["rows/a"].equal(averages.tensors["rows/a"]) and other.model.optimization_step == 4


def test_average_of_several_stages_is_refused():
    with pytest.raises(UserError, match="--ema_decay: --method two_stage has several stages"):
        TrainConfig(method="two_stage", ema_decay=0.9, **NEEDED)

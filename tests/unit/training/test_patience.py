"""Processes wait for one of them that validates for long."""

import accelerate
import pytest

import train_classdiffusion
from utils.bases.devices import PATIENCE
from utils.config.train_config import parse_config


class Asked(Exception):
    """With what an Accelerator was asked for."""


def test_processes_wait_for_hours_not_for_nccls_ten_minutes(dog_flags, tmp_path, monkeypatch):
    def ask(**given):
        raise Asked(given)

    monkeypatch.setattr(accelerate, "Accelerator", ask)
    with pytest.raises(Asked) as asked:
        train_classdiffusion.set_up(parse_config(dog_flags(tmp_path)))
    (handler,) = asked.value.args[0]["kwargs_handlers"]
    assert handler.timeout == PATIENCE and PATIENCE.total_seconds() == 6 * 3600

"""The log file through a resumed run, and what the trackers get."""

import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from utils.common.errors import UserError
from utils.config.train_config import TrainConfig
from utils.training.logger import Logger


def config(**settings: object) -> TrainConfig:
    return TrainConfig(instance_data_dir="dog", instance_prompt="a <new1> dog", cls_token="dog", **settings)


def steps(output_dir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (output_dir / "log.jsonl").read_text().splitlines()]


def write(output_dir: Path, first: int, last: int, resumed_at: int = 0) -> None:
    logger = Logger(output_dir, config(), resumed_at)
    for step in range(first, last + 1):
        logger.log(step, {"loss": step / 8, "lr": 1e-5})
    logger.close()


def test_lines_are_written_at_once(tmp_path: Path):
    logger = Logger(tmp_path / "new" / "folder", config())
    logger.log(1, {"loss": 0.5, "lr": 1e-5})
    assert (
        tmp_path / "new" / "folder" / "log.jsonl"
    ).read_text() == '{"step": 1, "loss": 0.5, "lr": 1e-05}\n'
    logger.images(1, "validation", [Image.new("RGB", (2, 2))])  # the file holds no images
    logger.close()
    assert steps(tmp_path / "new" / "folder") == [1]


def test_resumed_run_drops_the_lines_after_its_checkpoint(tmp_path: Path):
    write(tmp_path, 1, 5)
    before = (tmp_path / "log.jsonl").read_text().splitlines()
    write(tmp_path, 4, 6, resumed_at=3)
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "log.jsonl").read_text().splitlines()[:5] == before


def test_a_line_torn_by_the_end_of_the_run_is_dropped(tmp_path: Path):
    write(tmp_path, 1, 3)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    write(tmp_path, 4, 4, resumed_at=3)
    assert steps(tmp_path) == [1, 2, 3, 4]


@pytest.mark.parametrize("line", ['{"loss": 1}', '{"step": "4"}', '{"step": null}'])
def test_a_line_without_a_step_is_named_and_the_log_stays(tmp_path: Path, line: str):
    (tmp_path / "log.jsonl").write_text(f'{{"step": 1}}\n{line}\n')
    before = (tmp_path / "log.jsonl").read_text()
    with pytest.raises(UserError, match="log.jsonl: line 2 has no step; repair or remove it"):
        Logger(tmp_path, config(), resumed_at=3)
    assert (tmp_path / "log.jsonl").read_text() == before


def test_a_full_disk_is_one_line_and_tears_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, 1, 3)
    before = (tmp_path / "log.jsonl").read_text()
    monkeypatch.setattr(os, "replace", full := Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="cannot write .*log.jsonl: No space left on device; make room"):
        Logger(tmp_path, config(), resumed_at=2)
    assert full.called and (tmp_path / "log.jsonl").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_new_run_starts_a_new_log(tmp_path: Path):
    write(tmp_path, 1, 5)
    write(tmp_path, 1, 2)
    assert steps(tmp_path) == [1, 2]


@pytest.fixture
def trackers(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """TensorBoard and Weights & Biases as far as they are used; the calls they get."""
    calls: list[tuple] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int):
            calls.append(("open", folder, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            calls.append((name, value, step))

        def add_images(self, name: str, pictures: np.ndarray, step: int, dataformats: str) -> None:
            calls.append((name, pictures.shape, step, dataformats))

        def close(self) -> None:
            calls.append(("close",))

    tensorboard, wandb = ModuleType("torch.utils.tensorboard"), ModuleType("wandb")
    tensorboard.SummaryWriter = SummaryWriter
    wandb.Error = type("Error", (Exception,), {})
    wandb.Image = lambda picture: picture.size
    run = SimpleNamespace(
        log=lambda values, step: calls.append((values, step)), finish=lambda: calls.append(("finish",))
    )
    wandb.init = lambda project, config, dir: calls.append(("init", project, config["seed"], dir)) or run
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", tensorboard)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr("utils.config.output_flags.find_spec", lambda name: SimpleNamespace(origin=name))
    return calls


def report(output_dir: Path, tracker: str) -> None:
    logger = Logger(output_dir, config(report_to=tracker, tracker_name="dogs", seed=3), resumed_at=4)
    logger.log(5, {"loss": 0.5, "lr": 1e-5})
    logger.images(5, "validation", [Image.new("RGB", (4, 2))] * 3)
    logger.close()
    assert steps(output_dir) == [5]


def test_a_tracker_that_cannot_begin_is_one_line(tmp_path: Path, trackers: list[tuple]):
    wandb = sys.modules["wandb"]

    def refuse(**_: object) -> None:
        raise wandb.Error("api_key not configured (no-tty)\nsee the docs")

    wandb.init = refuse
    with pytest.raises(UserError) as mistake:
        report(tmp_path, "wandb")
    assert str(mistake.value) == (
        "--report_to wandb: api_key not configured (no-tty) see the docs; run `wandb login`, or set "
        "WANDB_MODE=offline"
    )


def test_tensorboard(tmp_path: Path, trackers: list[tuple]):
    report(tmp_path, "tensorboard")
    assert trackers == [
        ("open", str(tmp_path / "tensorboard" / "dogs"), 5),  # hides what lies after the checkpoint of step 4
        ("loss", 0.5, 5),
        ("lr", 1e-5, 5),
        ("validation", (3, 2, 4, 3), 5, "NHWC"),
        ("close",),
    ]


def test_wandb(tmp_path: Path, trackers: list[tuple]):
    report(tmp_path, "wandb")
    assert trackers == [
        ("init", "dogs", 3, str(tmp_path)),
        ({"loss": 0.5, "lr": 1e-5}, 5),
        ({"validation": [(4, 2)] * 3}, 5),
        ("finish",),
    ]

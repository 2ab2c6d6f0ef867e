"""Checkpoints: what is in them, which are found, and what a run refuses to resume from."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.training.state import (
    STATE_FILE,
    check_same_run,
    checkpoints,
    find_checkpoint,
    load_state,
    remove_old_checkpoints,
    save_state,
)


class Run:
    """Two parameters, AdamW, a decaying learning rate."""

    def __init__(self, seed: int = 0):
        torch.manual_seed(seed)
        self.trained: dict[str, Tensor] = {name: nn.Parameter(torch.randn(3)) for name in ("rows", "kv")}
        self.optimizer = torch.optim.AdamW(list(self.trained.values()), lr=0.1)
        self.lr_scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.5)

    def parts(self, processes: int = 1, scaler: torch.amp.GradScaler | None = None) -> tuple:
        return self.trained, self.optimizer, self.lr_scheduler, scaler, processes

    def go(self, steps: int) -> "Run":
        for _ in range(steps):
            sum(value.pow(4).sum() for value in self.trained.values()).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.lr_scheduler.step()
        return self


def write_checkpoints(output_dir: Path, *steps: int) -> None:
    for step in steps:
        (output_dir / f"checkpoint-{step}").mkdir()
        (output_dir / f"checkpoint-{step}" / STATE_FILE).touch()


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_resumed_run_goes_on_as_if_unbroken(tmp_path: Path):
    whole = Run().go(5)
    save_state(tmp_path, 2, *Run().go(2).parts())
    resumed = Run(seed=1)
    assert load_state(tmp_path, *resumed.parts()) == 2
    resumed.go(3)
    assert all(torch.equal(resumed.trained[name], value) for name, value in whole.trained.items())
    assert resumed.lr_scheduler.get_last_lr() == whole.lr_scheduler.get_last_lr() == [0.1 * 0.5**5]
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]  # no partial file is left


def test_the_loss_scale_of_fp16_is_kept(tmp_path: Path):
    def scaler(scale: float) -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale=scale)

    save_state(tmp_path, 1, *Run().parts(scaler=scaler(64)))
    loaded = scaler(1024)
    load_state(tmp_path, *Run().parts(scaler=loaded))
    assert loaded.get_scale() == 64


def test_other_tensors_are_refused(tmp_path: Path):
    save_state(tmp_path, 1, *Run().parts())
    run = Run()
    del run.trained["kv"]
    with pytest.raises(ValueError, match="trained 2 tensors, this run 1"):
        load_state(tmp_path, *run.parts())


def test_another_number_of_processes_is_refused(tmp_path: Path):
    save_state(tmp_path, 1, *Run().parts(processes=2))
    with pytest.raises(UserError, match="with 1 processes: it ran with 2"):
        load_state(tmp_path, *Run().parts(processes=1))


def test_checkpoints_are_complete_and_in_the_order_of_steps(tmp_path: Path):
    write_checkpoints(tmp_path, 100, 9, 10)
    (tmp_path / "checkpoint-200").mkdir()  # a run died before it was complete
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-best" / STATE_FILE).touch()
    assert names(checkpoints(tmp_path)) == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]
    assert find_checkpoint("latest", tmp_path) == tmp_path / "checkpoint-100"
    assert find_checkpoint(str(tmp_path / "checkpoint-9"), tmp_path / "other") == tmp_path / "checkpoint-9"


def test_without_a_checkpoint(tmp_path: Path):
    assert find_checkpoint("latest", tmp_path) is None
    assert find_checkpoint("latest", tmp_path / "none") is None
    with pytest.raises(UserError, match="checkpoint-3 holds no training_state.pt: give 'latest'"):
        find_checkpoint(str(tmp_path / "checkpoint-3"), tmp_path)


@pytest.mark.parametrize(
    ("step", "keep", "left"),
    [
        (12, None, [3, 9, 12]),
        (12, 5, [3, 9, 12]),
        (12, 2, [9, 12]),
        (12, 1, [12]),
        (9, None, [3, 9]),  # 12 is an earlier run's
        (9, 1, [9]),
    ],
)
def test_old_checkpoints_are_removed(tmp_path: Path, step: int, keep: int | None, left: list[int]):
    write_checkpoints(tmp_path, 3, 9, 12)
    remove_old_checkpoints(tmp_path, step, keep)
    assert names(checkpoints(tmp_path)) == [f"checkpoint-{number}" for number in left]


def test_settings_that_make_another_run_are_named(tmp_path: Path):
    config = {"seed": 0, "learning_rate": 1e-5, "hflip": False, "max_train_steps": 4, "report_to": "none"}
    (tmp_path / "training_config.json").write_text(json.dumps(config))
    save_state(tmp_path, 3, *Run().parts())
    may_differ = frozenset({"report_to", "max_train_steps"})
    check_same_run(tmp_path, config, may_differ)
    check_same_run(tmp_path, config | {"report_to": "wandb", "max_train_steps": 3}, may_differ)
    with pytest.raises(UserError, match=r"hflip was False, is True, seed was 0, is 1; give the same"):
        check_same_run(tmp_path, config | {"seed": 1, "hflip": True}, may_differ)
    with pytest.raises(UserError, match="beyond --max_train_steps 2"):
        check_same_run(tmp_path, config | {"max_train_steps": 2}, may_differ)

"""Trainings and their class images, killed at file operations: what goes on ends with the same bits."""

from collections.abc import Callable
from pathlib import Path

import pytest

import utils.training.prior
import utils.training.validation
from tests.faults.kills import differences, killed_runs, whole_run
from utils.sampling.images import sample
from utils.training.checkpoints import why_broken


@pytest.fixture
def program(train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """program(folder): four steps with class images, validation images and checkpoints, two of them kept."""

    def two_steps(pipeline, prompts, seeds, *_, batch_size=4, **__):
        return sample(pipeline, prompts, seeds, num_inference_steps=2, batch_size=1)

    monkeypatch.setattr(utils.training.prior, "sample", two_steps)
    monkeypatch.setattr(utils.training.validation, "sample", two_steps)
    settings = {"max_train_steps": 4, "checkpointing_steps": 1, "checkpoints_total_limit": 2}
    settings |= {"with_prior_preservation": True, "class_prompt": "a dog", "num_class_images": 3}
    settings |= {"validation_prompt": "a <new1> dog", "validation_steps": 3, "num_validation_images": 1}
    settings |= {"resume_from_checkpoint": "latest", "gradient_accumulation_steps": 1}
    return lambda folder: train(folder / "out", class_data_dir=folder / "class", **settings)


def check(folder: Path, whole: Path) -> None:
    assert differences(folder, whole) == []
    broken = {path.name: why_broken(path) for path in (folder / "out").glob("checkpoint-*")}
    assert broken == {"checkpoint-3": None, "checkpoint-4": None}


FEW_AND_MANY = [(3, 1), pytest.param(30, 8, marks=pytest.mark.faults)]


@pytest.mark.parametrize(("kills", "tears"), FEW_AND_MANY)
def test_a_training_killed(kills: int, tears: int, program: Callable[[Path], Path], tmp_path: Path):
    whole, count = whole_run(program, tmp_path / "whole"), 0
    for kind, points in (("kill", kills), ("tear", tears)):
        for folder in killed_runs(kind, program, tmp_path, points, f"{kind}: whole training", "out"):
            check(folder, whole)
            count += 1
    assert count == kills + tears


@pytest.mark.parametrize("kills", [2, pytest.param(12, marks=pytest.mark.faults)])
def test_class_images_killed(kills: int, program: Callable[[Path], Path], tmp_path: Path):
    whole, count = whole_run(program, tmp_path / "whole"), 0
    for folder in killed_runs("kill", program, tmp_path, kills, "kill: class images of a training", "class"):
        check(folder, whole)
        count += 1
    assert count == kills

"""Trainings and their class images, killed at file operations: what goes on ends with the same bits."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.kills import imports, survive_kills
from utils.sampling.images import sample


@pytest.fixture
def program(train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """program(folder): four steps with class images, validation images and checkpoints, two of them kept."""

    def two_steps(pipeline, prompts, seeds, *_, batch_size=4, **__):
        return sample(pipeline, prompts, seeds, num_inference_steps=2, batch_size=1)

    monkeypatch.setattr("utils.sampling.images.sample", two_steps)
    imports("utils.training.outputs", "utils.training.run", "diffusers.guiders", "diffusers.optimization")
    settings = {"max_train_steps": 4, "checkpointing_steps": 1, "checkpoints_total_limit": 2}
    settings |= {"with_prior_preservation": True, "class_prompt": "a dog", "num_class_images": 3}
    settings |= {"validation_prompt": "a <new1> dog", "validation_steps": 3, "num_validation_images": 1}
    settings |= {"resume_from_checkpoint": "latest", "gradient_accumulation_steps": 1}
    return lambda folder: train(folder / "out", class_data_dir=folder / "class", **settings)


ALL = pytest.mark.faults
TRIALS = [("kill", "out", 2), ("kill", "class", 1)]
MANY = [("kill", "out", 20), ("tear", "out", 6), ("kill", "class", 8), ("tear", "class", 2)]


@pytest.mark.parametrize(
    ("kind", "root", "points"), TRIALS + [pytest.param(*each, marks=ALL) for each in MANY]
)
def test_a_training_killed(
    kind: str, root: str, points: int, program: Callable[[Path], Path], tmp_path: Path
):
    """root: where the operations are that it is killed at, those of the run or those of its class images."""
    name, few = f"{kind}: {'class images of a' if root == 'class' else 'whole'} training", points < 3
    assert survive_kills(kind, program, tmp_path, points, name, root, once=few) == points
    kept = {path.name for path in (tmp_path / "whole" / "out").glob("checkpoint-*")}
    assert kept == {"checkpoint-3", "checkpoint-4"}

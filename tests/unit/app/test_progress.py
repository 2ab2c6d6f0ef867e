"""A training's log as curves, its state in words."""

import math
import re
from pathlib import Path

import pytest

from utils.app.form import Form
from utils.app.jobs import Job
from utils.app.progress import before_the_first_step, curves, duration, in_words
from utils.app.trainer import FAILED, STOPPED, STOPPING, TRAINED, TRAINING, Status

JOB = Job(Path("jobs/dog-1"), Form("dog"), ("--instance_data_dir=x", "--cls_token=dog"), 300)


def log(steps: int) -> list[dict[str, float]]:
    return [
        {"step": i, "loss": 1.0, "loss_denoise": 2.0 + i % 2, "loss_spl": i / 1000}
        for i in range(1, steps + 1)
    ]


def points(svg: str, gid: str) -> int:
    """How many points a line of the chart has."""
    path = re.search(rf'<g id="[\w-]*{gid}">\s*<path d="([^"]*)"', svg)[1]
    return len(re.findall("[ML]", path))


def test_every_loss_but_their_sum_has_a_curve_the_noisy_one_smoothed():
    (denoise, meaning, svg), (spl, _, exact) = curves(log(60), 60)
    assert (denoise, spl) == ("Denoising loss", "Distance to the class")
    assert meaning.startswith("The error of the predicted noise")
    assert "Denoising loss, 2.5 at first, 2.5 now" in svg, "not smoothed: 3 and 2"
    assert "Distance to the class, 0.001 at first, 0.06 now" in exact
    assert points(svg, "mean-0") == points(svg, "member-0-1") == 60
    assert "member" not in exact


def test_a_log_of_two_steps_or_of_no_numbers_has_no_curve_yet():
    assert curves(log(2), 300) == curves([], 300) == []
    broken = [{"step": i, "loss_denoise": math.nan} for i in range(9)]
    assert curves(broken, 300) == []


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (Status(TRAINING, 0, 300, 0), "Loading the base model."),
        (Status(TRAINING, 40, 300, 0), "Training, step 40 of 300."),
        (Status(TRAINING, 40, 300, 0, "", 200.0), "Training, step 40 of 300, about 3 min left."),
        (Status(TRAINING, 300, 300, 225, "", 0.0), "Training, step 300 of 300: drawing samples and saving."),
        (Status(STOPPING, 40, 300, 0), "Stopping: it saves after this step (step 40 of 300)."),
        (Status(STOPPED, 41, 300, 41), "Stopped after step 41 of 300. Resume goes on from step 41."),
        (
            Status(STOPPED, 41, 300, 0, "its process was ended by SIGKILL"),
            "Stopped after step 41 of 300 (its process was ended by SIGKILL). Resume begins anew, with the "
            "same images.",
        ),
        (Status(FAILED, 0, 300, 0, "no such luck"), "It ended with an error: no such luck"),
        (Status(TRAINED, 300, 300, 300), "Trained, 300 steps. Write prompts below."),
    ],
)
def test_each_state_is_a_sentence(status: Status, said: str):
    assert in_words(JOB, status) == said


def test_class_images_are_counted_before_the_first_step(tmp_path: Path):
    output = tmp_path / "concept"
    flags = (
        "--method=custom_diffusion",
        "--instance_data_dir=x",
        "--cls_token=dog",
        f"--output_dir={output}",
    )
    job = Job(tmp_path, Form("dog", method="custom_diffusion"), (*flags, "--num_class_images=5"), 300)
    assert job.class_images() == (0, 5)
    (output / "class_images" / "0").mkdir(parents=True)
    for number in range(2):
        (output / "class_images" / "0" / f"class-{number}.png").touch()
    assert in_words(job, Status(TRAINING, 0, 300, 0)) == "Drawing class images, 2 of 5."
    assert before_the_first_step(5, 5) == "Loading the base model, then drawing class images."
    assert JOB.class_images() == (0, 0)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(2, "about 5 s"), (62, "about 60 s"), (100, "about 2 min"), (5000, "about 83 min"), (7300, "about 2 h")],
)
def test_durations(seconds: float, said: str):
    assert duration(seconds) == said

"""Trainings that the page starts: one at a time, stopped, resumed, killed; a stand-in trains."""

import os
import shutil
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from utils.app.form import Form
from utils.app.jobs import Job, list_jobs
from utils.app.trainer import FAILED, STOPPED, STOPPING, TRAINED, TRAINING, Trainer
from utils.bases.registry import REPOSITORY
from utils.common.errors import UserError

SCRIPT = REPOSITORY / "tests" / "fake_training.py"
DOG = sorted((REPOSITORY / "data" / "dog").glob("*.png"))
ENDLESS = 100_000  # steps


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Trainer]:
    trainer = Trainer(tmp_path / "jobs", SCRIPT)
    yield trainer
    trainer.close()


def wait(until: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def started(trainer: Trainer, steps: int = ENDLESS, **fields: str) -> Job:
    job = trainer.begin(Form("dog", steps=steps, **fields), DOG)
    wait(lambda: trainer.status(job).step >= min(steps, 3))
    return job


def steps_of(job: Job) -> list[int]:
    return [record["step"] for record in job.log()]


def test_a_training_keeps_the_images_as_sent_and_ends_as_trained(trainer: Trainer):
    job = started(trainer, steps=5)
    wait(lambda: not trainer.status(job).is_running)
    status = trainer.status(job)
    assert (job.name, status.state, status.step, status.steps) == ("dog-1", TRAINED, 5, 5)
    sent = {path.name: path.read_bytes() for path in DOG}
    assert {path.name: path.read_bytes() for path in (job.folder / "images").iterdir()} == sent
    assert list_jobs(trainer.folder) == [job]
    with pytest.raises(UserError, match="dog-1 is already trained"):
        trainer.resume(job)
    assert started(trainer, steps=5).name == "dog-2"


def test_a_second_training_is_refused_while_the_first_runs(trainer: Trainer):
    job = started(trainer)
    before = sorted(trainer.folder.iterdir())
    with pytest.raises(UserError, match=r"dog-1 is training \(step \d+ of 100000\).*: stop it, or wait"):
        trainer.begin(Form("cat"), DOG)
    with pytest.raises(UserError, match="dog-1 is training"):
        trainer.resume(job)
    assert sorted(trainer.folder.iterdir()) == before
    assert trainer.status(job).state == TRAINING


def test_stop_saves_and_resume_goes_on_from_there(trainer: Trainer):
    job = started(trainer)
    assert trainer.stop() == job
    assert trainer.status(job).state in (STOPPING, STOPPED)
    wait(lambda: not trainer.status(job).is_running)
    stopped = trainer.status(job)
    assert stopped.state == STOPPED and stopped.saved == stopped.step >= 3
    with pytest.raises(UserError, match="no training is running"):
        trainer.stop()
    trainer.resume(job)
    wait(lambda: trainer.status(job).step > stopped.step)
    assert trainer.status(job).state == TRAINING
    assert steps_of(job) == list(range(1, len(steps_of(job)) + 1)), "a step was lost or done twice"


def test_a_second_stop_does_not_end_it_at_once(trainer: Trainer):
    job = started(trainer)
    trainer.stop()
    with pytest.raises(UserError, match="is stopping already|no training is running"):
        trainer.stop()
    wait(lambda: not trainer.status(job).is_running)
    assert trainer.status(job).saved >= 3


def test_the_end_of_the_thread_that_began_it_does_not_stop_it(trainer: Trainer):
    jobs: list[Job] = []
    thread = threading.Thread(target=lambda: jobs.append(started(trainer)))
    thread.start()
    thread.join()
    seen = trainer.status(jobs[0]).step
    wait(lambda: trainer.status(jobs[0]).step > seen + 20)
    assert trainer.status(jobs[0]).state == TRAINING


def test_close_waits_until_the_training_has_saved(trainer: Trainer):
    job = started(trainer)
    trainer.close()
    status = Trainer(trainer.folder, SCRIPT).status(job)
    assert status.state == STOPPED and status.saved == status.step


def test_a_failed_training_says_why(trainer: Trainer):
    job = trainer.begin(Form("dog", prompt="fails"), DOG)
    wait(lambda: not trainer.status(job).is_running)
    status = trainer.status(job)
    assert (status.state, status.message) == (FAILED, "no such luck")
    assert Trainer(trainer.folder).status(job) == status, "also after a new start of the app"


def test_a_training_that_could_not_say_why_it_failed(trainer: Trainer):
    """A full disk takes no last line."""
    job = trainer.begin(Form("dog", prompt="silent"), DOG)
    wait(lambda: not trainer.status(job).is_running)
    status = trainer.status(job)
    assert status.state == FAILED and status.message.startswith("its process ended with status 2 and could")


def test_a_job_that_would_write_elsewhere_is_not_resumed(trainer: Trainer, tmp_path: Path):
    job = started(trainer)
    trainer.stop()
    wait(lambda: not trainer.status(job).is_running)
    for flag in (f"--output_dir={tmp_path / 'other'}", f"--class_data_dir={tmp_path}"):
        flags = (*job.flags, "--with_prior_preservation", "--class_prompt=a dog", flag)
        with pytest.raises(UserError, match="dog-1 would write outside of .*dog-1/concept: train it anew"):
            trainer.resume(replace(job, flags=flags))


def test_a_training_that_was_killed_can_be_resumed_and_says_what_ended_it(trainer: Trainer):
    job = started(trainer)
    trainer._own[1].kill()
    wait(lambda: not trainer.status(job).is_running)
    status = trainer.status(job)
    assert (status.state, status.message) == (STOPPED, "its process was ended by SIGKILL")
    shutil.rmtree(job.concept)
    trainer.resume(job)
    wait(lambda: trainer.status(job).step >= 3)


def test_a_training_of_another_process_counts_and_can_be_stopped(trainer: Trainer, tmp_path: Path):
    job = started(trainer, steps=5)
    wait(lambda: not trainer.status(job).is_running)
    (job.concept / "training_config.json").unlink()
    flags = [flag for flag in job.flags if not flag.startswith("--max_train_steps")]
    command = [sys.executable, str(SCRIPT), *flags]
    with subprocess.Popen([*command, f"--max_train_steps={ENDLESS}"], cwd=REPOSITORY) as other:
        try:
            later = Trainer(trainer.folder, SCRIPT)
            wait(lambda: later.status(job).is_running)
            with pytest.raises(UserError, match="dog-1 is training"):
                later.begin(Form("cat"), DOG)
            later.stop()
            assert other.wait(30) == 130
        finally:
            other.kill()  # so that a failure does not wait for its end
    assert later.status(job).state == STOPPED


def bomb(path: Path) -> Path:
    """A PNG of 60,000 x 60,000 pixels by its header."""

    def chunk(name: bytes, content: bytes) -> bytes:
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )
    return path


def text(path: Path) -> Path:
    path.write_text("I am no image")
    return path


def cut(path: Path) -> Path:
    path.write_bytes(DOG[0].read_bytes()[:3000])
    return path


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: [], "no images: drop 3 to 6"),
        (lambda folder: [text(folder / "a.png")], r"cannot read image a\.png \(cannot identify"),
        (lambda folder: [*DOG, bomb(folder / "b.png")], r"cannot read image b\.png \(.*pixels"),
        (lambda folder: [*DOG, cut(folder / "c.png")], r"cannot read image c\.png \(.*truncated"),
        (lambda folder: [text(folder / "notes.txt")], "no images in your files"),
    ],
)
def test_uploads_that_a_training_would_refuse_are_refused_with_nothing_written(
    trainer: Trainer, tmp_path: Path, make, said: str
):
    with pytest.raises(UserError, match=said) as error:
        trainer.begin(Form("dog"), make(tmp_path))
    assert "classdiffusion-" not in str(error.value), "names a folder that the user never saw"
    assert not trainer.folder.exists()


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (Form(" "), "no class word"),
        (Form("dog", token="<new1>\n"), "--modifier_token '<new1>\\\\n' has a line break"),
        (Form("dog", token="<a>+<b>"), "--cls_token 'dog': need one class for each"),
        (Form("dog", token="dog"), "dog"),
        (Form("dog", steps=0), "--max_train_steps 0: give a number of at least 1"),
        (Form("dog", seed=-1), "--seed -1"),
        (Form("dog", base="/no/where"), "/no/where"),
    ],
)
def test_settings_that_a_training_would_refuse_are_refused_with_nothing_written(
    trainer: Trainer, form: Form, said: str
):
    with pytest.raises(UserError, match=said):
        trainer.begin(form, DOG)
    assert not trainer.folder.exists()


def test_a_full_disk_leaves_no_half_job(trainer: Trainer, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("utils.app.trainer.shutil.copytree", full)
    with pytest.raises(UserError, match="No space left on device; make room"):
        trainer.begin(Form("dog"), DOG)
    assert list(trainer.folder.iterdir()) == []


def test_one_image_is_enough(trainer: Trainer, tmp_path: Path):
    Image.open(DOG[0]).save(tmp_path / "only.png")
    job = trainer.begin(Form("teddy bear!", steps=3), [tmp_path / "only.png"])
    assert job.name == "teddy-bear-1"
    wait(lambda: trainer.status(job).state == TRAINED)

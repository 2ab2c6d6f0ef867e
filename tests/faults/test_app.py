"""The page's program is killed while a training of its runs; a stand-in trains."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils.app.jobs import list_jobs
from utils.app.trainer import STOPPED, Trainer
from utils.bases.registry import REPOSITORY

SCRIPT = REPOSITORY / "tests" / "fake_training.py"
DOG = sorted((REPOSITORY / "data" / "dog").glob("*.png"))

BEGIN = """
import sys, time
from pathlib import Path
from utils.app.form import Form
from utils.app.trainer import Trainer
trainer = Trainer(Path(sys.argv[1]), Path(sys.argv[2]))
job = trainer.begin(Form("dog", steps=100_000), sys.argv[3:])
while trainer.status(job).step < 3:
    time.sleep(.02)
print("trains", flush=True)
time.sleep(100)
"""


def wait(until, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal at the parent's end is Linux's")
def test_the_app_is_killed_the_training_saves_and_the_next_app_resumes_it(tmp_path: Path):
    command = [sys.executable, "-c", BEGIN, str(tmp_path), str(SCRIPT), *map(str, DOG)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as app:
        assert app.stdout.readline() == "trains\n"
        app.kill()
    trainer = Trainer(tmp_path, SCRIPT)
    (job,) = list_jobs(tmp_path)
    wait(lambda: not trainer.status(job).is_running)
    status = trainer.status(job)
    assert status.state == STOPPED and status.saved == status.step >= 3
    trainer.resume(job)
    wait(lambda: trainer.status(job).step > status.step)
    trainer.close()
    steps = [record["step"] for record in job.log()]
    assert steps == list(range(1, len(steps) + 1)), "a step was lost or done twice"

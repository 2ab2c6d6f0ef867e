"""One training at a time, in a process of its own, which is asked to save when the app ends.

What a job's state is comes from its files, so that it is right also after a new start of the app.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from utils.app.form import Form, flags_of
from utils.app.jobs import Job, list_jobs, new_folder, save_job
from utils.app.uploads import gather, plain_names
from utils.bases.registry import REPOSITORY
from utils.common.errors import UserError
from utils.common.files import one_line
from utils.common.process import start_child
from utils.config.train_config import parse_config
from utils.training.lock import holder, is_held

TRAINING, STOPPING, TRAINED, STOPPED, FAILED = "training", "stopping", "trained", "stopped", "failed"


@dataclass(frozen=True)
class Status:
    """state: one of the five above. step: the last in the log; saved: that of the newest checkpoint."""

    state: str
    step: int
    steps: int
    saved: int
    message: str = ""  # the error of a failed training
    seconds_left: float | None = None

    @property
    def is_running(self) -> bool:
        return self.state in (TRAINING, STOPPING)


class Trainer:
    """Starts, stops and resumes the trainings of a folder; `close` before the program ends."""

    def __init__(self, folder: Path, script: Path = REPOSITORY / "train_classdiffusion.py"):
        self.folder, self._script = folder.absolute(), script
        self._own: tuple[str, subprocess.Popen] | None = None  # the latest training of this program
        self._asked = ""  # the job that was asked to stop
        self._pace: tuple[float, int] | None = None  # (when, at which step) this process was first seen
        self._mutex = threading.Lock()

    def begin(self, form: Form, uploads: Sequence[str | Path]) -> Job:
        """Checks everything as the training command does, then keeps the images and starts it.

        Raises UserError for a mistake, with nothing written, and while another training runs.
        """
        from utils.training.preflight import check_run

        with self._mutex, TemporaryDirectory(prefix="classdiffusion-") as name:
            self._check_free()
            images = Path(name)
            gather(uploads, images)
            with plain_names(images):
                config = parse_config(flags_of(form, images, self.folder / "concept"))
                check_run(config)
            folder = new_folder(self.folder, form.cls)
            try:
                with one_line("write", folder):
                    shutil.copytree(images, folder / "images")
                flags = flags_of(form, folder / "images", folder / "concept")
                job = Job(folder, form, tuple(flags), config.max_train_steps)
                save_job(job)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            self._launch(job)
            return job

    def resume(self, job: Job) -> None:
        """Goes on from the newest checkpoint, from the beginning if there is none."""
        with self._mutex:
            self._check_free()
            if job.is_trained:
                raise UserError(f"{job.name} is already trained")
            config = parse_config(list(job.flags))
            if config.class_data_dir or Path(config.output_dir) != job.concept.absolute():
                raise UserError(f"{job.name} would write outside of {job.concept.absolute()}: train it anew")
            self._launch(job)

    def stop(self) -> Job:
        """Asks the running training to save after its step and end; returns its job."""
        job = self.running()
        if job is None:
            raise UserError("no training is running")
        if self._asked == job.name:
            raise UserError(f"{job.name} is stopping already: it saves after this step")
        if self._is_own(job):
            self._own[1].send_signal(signal.SIGINT)
        elif who := holder(job.concept):
            if who.host != socket.gethostname():
                raise UserError(f"{job.name} trains on {who.host}: stop it there")
            os.kill(who.pid, signal.SIGINT)
        self._asked = job.name
        return job

    def running(self) -> Job | None:
        """The job that trains now; also one of an earlier start of the app that is still saving."""
        return next((job for job in list_jobs(self.folder) if self._is_running(job)), None)

    def status(self, job: Job) -> Status:
        """Where a job is; of one with a damaged log, what is wrong with it."""
        try:
            return self._status(job)
        except UserError as error:
            return Status(FAILED, 0, job.steps, job.saved_step(), message=str(error))

    def _status(self, job: Job) -> Status:
        log = job.log()
        step = log[-1]["step"] if log else 0
        status = Status(STOPPED, step, job.steps, job.saved_step())
        if self._is_running(job):
            asked = self._asked == job.name
            left = None if asked else self._seconds_left(job, step)
            return replace(status, state=STOPPING if asked else TRAINING, seconds_left=left)
        if job.is_trained:
            return replace(status, state=TRAINED)
        if error := job.error():
            return replace(status, state=FAILED, message=error)
        code = self._own[1].poll() if self._own and self._own[0] == job.name else 0
        if code and self._asked != job.name:
            if code < 0:
                return replace(status, message=f"its process was ended by {signal.Signals(-code).name}")
            if code < 128:  # no signal's, upon which it saved; a full disk takes no last line
                message = f"its process ended with status {code} and could not say why: is the disk full?"
                return replace(status, state=FAILED, message=message)
        return status

    def close(self) -> None:
        """Asks a training of this program to stop and waits until it has saved."""
        if self._own is not None and self._own[1].poll() is None:
            name, process = self._own
            if self._asked != name:
                self._asked = name
                process.send_signal(signal.SIGINT)
            process.wait()

    def _check_free(self) -> None:
        if (job := self.running()) is not None:
            status = self.status(job)
            raise UserError(
                f"{job.name} is training (step {status.step} of {status.steps}), and only one can train at "
                "a time: stop it, or wait for its end"
            )

    def _launch(self, job: Job) -> None:
        self._asked, self._pace = "", None
        command = [sys.executable, str(self._script), *job.flags]
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        self._own = (job.name, start_child(command, job.printed, environment, signal.SIGINT, REPOSITORY))

    def _is_own(self, job: Job) -> bool:
        return self._own is not None and self._own[0] == job.name and self._own[1].poll() is None

    def _is_running(self, job: Job) -> bool:
        """Our process, from its start; another's from when it holds the folder.

        The lock of our own process is not tried: that could make it fail when it takes it.
        """
        if self._own is not None and self._own[0] == job.name:
            return self._own[1].poll() is None
        return is_held(job.concept)

    def _seconds_left(self, job: Job, step: int) -> float | None:
        """From the steps since this program first saw the training make one; None before two."""
        if self._pace is None:
            self._pace = (time.monotonic(), step) if step > job.saved_step() else None
            return None
        since, first = self._pace
        return (time.monotonic() - since) / (step - first) * (job.steps - step) if step > first else None

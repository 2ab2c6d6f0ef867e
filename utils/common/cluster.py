"""Commands as jobs, by submitit: of a Slurm cluster, or as processes of this machine.

submitit is imported when it is needed: it is not among the requirements.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

from utils.common.errors import UserError
from utils.common.files import read_json, write_json
from utils.common.process import run_child

if TYPE_CHECKING:
    from submitit import Executor, Job

EXECUTORS = ("slurm", "local")
POLL = 5.0  # seconds between two looks at the jobs
SIGNAL_DELAY = 120  # seconds before its end in which a job saves
ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "REQUEUED", "COMPLETING")  # of Slurm's states
JOBS_FILE = "jobs.json"  # name -> id of the jobs at work


@dataclass(frozen=True)
class Cluster:
    """executor: one of EXECUTORS. partition: Slurm's, None for its default. at_once: jobs at a time. hours:
    time limit of a job. gpu: whether each job gets one."""

    executor: str
    partition: str | None
    at_once: int
    hours: float
    gpu: bool

    @property
    def parameters(self) -> dict[str, object]:
        """What submitit is told of each job."""
        told = {"timeout_min": max(1, round(60 * self.hours)), "name": "classdiffusion"}
        if self.executor == "slurm":
            told |= {"gpus_per_node": int(self.gpu), "slurm_signal_delay_s": SIGNAL_DELAY}
            told |= {"slurm_partition": self.partition} if self.partition else {}
        return told


def check_executor(executor: str) -> None:
    """Raises UserError where submitit, or a Slurm cluster, is missing."""
    if find_spec("submitit") is None:
        raise UserError("--executor needs submitit: pip install -r requirements-cluster.txt")
    if executor == "slurm" and which("sbatch") is None:
        raise UserError("--executor slurm needs Slurm's sbatch: give the command on a machine of the cluster")


def run_jobs(
    cluster: Cluster,
    commands: Mapping[str, Sequence[str]],
    folder: Path,
    is_done: Callable[[str], bool],
    say: Callable[[str], None],
) -> list[str]:
    """Runs the commands, each as a job; the names of those that have ended without being done.

    folder: of the jobs' logs, <name>.txt, and of submitit's files; all machines must see it. What an earlier
    call has left at work on Slurm is waited for, not submitted again.
    """
    executor = _executor(cluster, folder)
    running = _left_behind(folder, commands) if cluster.executor == "slurm" else {}
    waiting = [name for name in commands if name not in running]
    failed, ended = [], 0
    while waiting or running:
        while waiting and len(running) < cluster.at_once:
            name = waiting.pop(0)
            running[name] = executor.submit(carry_out, list(commands[name]), log_of(folder, name))
            write_json(folder / JOBS_FILE, {name: job.job_id for name, job in running.items()})
        time.sleep(POLL)
        for name in [name for name, job in running.items() if is_done(name) or job.done()]:
            job, ended = running.pop(name), ended + 1
            if not is_done(name):
                failed.append(name)
            how = "done" if is_done(name) else f"not done, see {log_of(folder, name)}"
            say(f"[{ended}/{len(commands)}] job {job.job_id}, {name}: {how}")
    return failed


def carry_out(command: Sequence[str], log: Path) -> None:
    """The command, on the machine of its job. Raises RuntimeError for an exit code that is not 0."""
    if code := run_child(command, log, os.environ):
        raise RuntimeError(f"exit code {code}: see {log}")


def log_of(folder: Path, name: str) -> Path:
    return folder / f"{name.replace('/', '_')}.txt"


def _executor(cluster: Cluster, folder: Path) -> "Executor":
    from submitit import AutoExecutor

    folder.mkdir(parents=True, exist_ok=True)
    executor = AutoExecutor(folder=folder.resolve(), cluster=cluster.executor)
    executor.update_parameters(**cluster.parameters)
    return executor


def _left_behind(folder: Path, names: Mapping[str, object]) -> "dict[str, Job]":
    """Jobs of an earlier call that are queued or at work on Slurm."""
    from submitit import SlurmJob

    file = folder / JOBS_FILE
    known = read_json(file) if file.is_file() else {}
    jobs = {name: SlurmJob(folder.resolve(), str(job)) for name, job in known.items() if name in names}
    return {name: job for name, job in jobs.items() if job.watcher.get_state(job.job_id, "force") in ALIVE}

"""Real processes: trainings killed between steps, a rank that dies, programs that may open no socket."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.kills import differences
from tests.faults.shim import survived, tried
from tests.tiny_scorers import write_scorers
from utils.training.checkpoints import checkpoints, find_checkpoint, step_of

pytestmark = pytest.mark.faults
REPOSITORY = Path(__file__).parents[2]


def start(argv: list[str], **more: object) -> subprocess.Popen:
    """A program on the CPU, quietly, with one thread."""
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    how = {"cwd": REPOSITORY, "env": environment, "stdout": subprocess.DEVNULL} | more
    return subprocess.Popen([sys.executable, *argv], **{"stderr": subprocess.DEVNULL} | how)


def wait(process: subprocess.Popen, until: Callable[[], object], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert process.poll() is None and time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def steps_in(folder: Path) -> int:
    log = folder / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def test_real_trainings_killed(tmp_path: Path, dog_flags: Callable[..., list[str]]):
    """SIGKILL at four moments of one run, resumed each time: the bits of the unbroken run."""
    settings = {"max_train_steps": 24, "checkpointing_steps": 3, "checkpoints_total_limit": 3}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    flags = {
        folder: dog_flags(folder, resume_from_checkpoint="latest", **settings) for folder in (whole, broken)
    }
    assert start(["train_classdiffusion.py", *flags[whole]]).wait() == 0
    for step in (1, 6, 13, 20):
        tried("kill: training, a real process")
        with start(["train_classdiffusion.py", *flags[broken]]) as process:
            wait(process, lambda step=step: steps_in(broken) >= step)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        found, skipped = find_checkpoint("latest", broken)
        assert skipped == [] and (step_of(found) if found else 0) >= step - 3
        survived("kill: training, a real process")
    assert start(["train_classdiffusion.py", *flags[broken]]).wait() == 0
    assert differences(broken, whole) == []


def test_a_rank_that_dies_ends_the_other(tmp_path: Path, dog_flags: Callable[..., list[str]]):
    """Two processes; one gets SIGKILL: all end within seconds, exit not 0, and the checkpoints are whole."""
    out = tmp_path / "out"
    argv = dog_flags(out, max_train_steps=5000, checkpointing_steps=2, checkpoints_total_limit=2)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train_classdiffusion.py"]
    for victim in (0, 1):
        tried("a rank that dies")
        again = ["--resume_from_checkpoint=latest"] if victim else []
        with start([*launch, *argv, *again]) as launcher:
            before = steps_in(out)
            wait(launcher, lambda before=before: steps_in(out) > before + 5)
            ranks = ranks_of(launcher.pid)
            assert sorted(ranks) == [0, 1]
            os.kill(ranks[victim], signal.SIGKILL)
            assert launcher.wait(timeout=120) != 0
        assert not [pid for pid in ranks.values() if Path(f"/proc/{pid}").exists()]
        found, skipped = find_checkpoint("latest", out)
        assert found in checkpoints(out) and skipped == []
        survived("a rank that dies")


def ranks_of(launcher: int) -> dict[int, int]:
    """rank -> process id of a launcher's processes."""
    ranks = {}
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        variables = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
        ranks |= {int(each.removeprefix("RANK=")): int(pid) for each in variables if each.startswith("RANK=")}
    return ranks


NO_SOCKETS = """
import importlib, json, sys

def refuse(event, args):
    if event in ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo"):
        raise AssertionError(f"{event} {args[1:]}")

sys.addaudithook(refuse)
for module, argv in json.loads(sys.argv[1]):
    importlib.import_module(module).main(argv)
    print("ended", module, flush=True)
"""


def test_no_program_opens_a_socket(tmp_path: Path, tiny_base: Path, pictures, dog_flags):
    """Training, sampling, a score, an evaluation and an export in one process, where a connection raises."""
    out, judges = tmp_path / "concept", write_scorers(tmp_path / "judges")
    few = ["--num_inference_steps=2", "--num_images=1"]
    programs = {
        "train_classdiffusion": dog_flags(out),
        "inference": [f"--base={tiny_base}", f"--concept={out}", f"--output_dir={tmp_path / 'images'}", *few],
        "blip2t": [f"--model={judges['blip']}", f"--image={pictures('dog')}", "--prompt=a photo of a dog"],
        "scripts.evaluate": [
            *("concept", str(out), f"--output_dir={tmp_path / 'results'}", "--metrics=clip_t,dino_i", *few),
            *(f"--{name}={folder}" for name, folder in judges.items()),
        ],
        "scripts.export": [str(out), str(tmp_path / "lora"), "--format=lora"],
    }
    given = json.dumps(list(programs.items()))
    with start(
        ["-c", NO_SOCKETS, given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for _ in programs:
            tried("no sockets")
        said, errors = process.communicate(timeout=600)
    ended = [line.split()[1] for line in said.splitlines() if line.startswith("ended ")]
    assert ended == list(programs), errors[-1000:]
    for _ in ended:
        survived("no sockets")

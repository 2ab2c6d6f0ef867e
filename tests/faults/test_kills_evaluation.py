"""Evaluations ended at file operations and while they train: no child is left, and they go on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState

import train_classdiffusion
from scripts import evaluate
from tests.faults.kills import contents, imports, survive_kills
from tests.faults.shim import survived, tried
from tests.tiny_scorers import write_scorers
from utils.evaluation import training_process
from utils.training.lock import holder, is_held

REPOSITORY = Path(__file__).parents[2]
CONCEPT = Path("classdiffusion", "dog", "concept")


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, pictures: Callable[..., Path]):
    """flags(output_dir, steps, every): a command line of one subject, two prompts and two methods."""
    folder = tmp_path_factory.mktemp("dreambooth")
    (folder / "dog").symlink_to(pictures("dog"))
    section = "\n\nprompt_list = [\n'a {0} {1} on the beach'.format(a, b),\n]\n\n"
    text = "Classes\n\nsubject_name,class\ndog,dog\n\nPrompts\n\nObject Prompts" + section
    (folder / "prompts_and_classes.txt").write_text(text + "Live Subject Prompts" + section)
    judges = [f"--{name}={path}" for name, path in write_scorers(folder / "scorers").items()]
    few = ["--num_images=2", "--num_class_images=2", "--num_inference_steps=2", "--batch_size=1"]

    def command(output_dir: Path, steps: int, every: int = 1) -> list[str]:
        train = f"--train_flags=--resolution=16 --max_train_steps={steps} --checkpointing_steps={every}"
        given = ["dataset", "dreambooth", f"--data_dir={folder}", f"--base={tiny_base}", train]
        return [*given, *few, *judges, "--methods=base,classdiffusion", f"--output_dir={output_dir}"]

    return command


@pytest.fixture
def program(flags, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """program(folder): the evaluation, whose training runs in its own process and so is killed with it."""

    def train_here(command: list[str], *_: object) -> int:
        AcceleratorState._reset_state()  # the evaluation goes on with accelerate's other state
        GradientState._reset_state()
        train_classdiffusion.main(command[2:])
        return 0

    imports(
        "utils.evaluation.evaluation", "utils.report.page", "utils.training.outputs", "utils.training.run"
    )
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(training_process, "run_child", train_here)

    def run(folder: Path) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)  # of earlier tests in this process
        evaluate.main(flags(folder, 2))

    return run


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.faults)])
def test_an_evaluation_killed(kills: int, program: Callable[[Path], None], tmp_path: Path):
    assert survive_kills("kill", program, tmp_path, kills, "kill: evaluation", once=kills < 3) == kills
    written = contents(tmp_path / "whole").keys()
    assert {"table.json", "base/dog/records.jsonl", f"{CONCEPT}/log.jsonl"} <= written


def wait(until: Callable[[], object], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def steps_of(log: Path) -> list[int]:
    """The steps of a log's whole lines."""
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


CASES = {  # who gets which signal, and what the evaluation then ends with
    "evaluation killed": ("evaluation", signal.SIGKILL, -signal.SIGKILL, ""),
    "training killed": (
        "training",
        signal.SIGKILL,
        2,
        "error: training dog with classdiffusion: ended by SIGKILL",
    ),
    "evaluation terminated": (
        "evaluation",
        signal.SIGTERM,
        143,
        "stopped; the same command goes on from here",
    ),
    "Ctrl-C": ("evaluation", signal.SIGINT, 130, "stopped; the same command goes on from here"),
}


@pytest.mark.faults
@pytest.mark.parametrize("case", CASES)
def test_an_evaluation_ended_while_its_child_trains(case: str, flags, tmp_path: Path):
    """As a user runs it; the training is a process of its own, and does not outlive its evaluation."""
    victim, number, code, message = CASES[case]
    folder, steps = tmp_path / "results", 60
    log, records = folder / CONCEPT / "log.jsonl", folder / "base" / "dog" / "records.jsonl"
    command = [sys.executable, "-m", "scripts.evaluate", *flags(folder, steps, 8)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    how = {"cwd": REPOSITORY, "env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    tried(f"real evaluation: {case}")
    with subprocess.Popen(command, text=True, **how) as process:
        wait(lambda: len(steps_of(log)) > 10 or process.poll() is not None)
        child = holder(folder / CONCEPT).pid
        assert child != process.pid
        os.kill(process.pid if victim == "evaluation" else child, number)
        error = process.communicate(timeout=300)[1]
    assert process.returncode == code and "Traceback" not in error
    assert not message or error.splitlines()[-1].startswith(message), error[-500:]
    wait(lambda: not is_held(folder / CONCEPT), seconds=20)
    assert 10 < len(steps_of(log)) < steps and not (folder / "table.json").exists()
    if code in (130, 143):  # it saved after its step
        newest = max(int(path.name.removeprefix("checkpoint-")) for path in log.parent.glob("checkpoint-*"))
        assert newest == steps_of(log)[-1]
    before = records.read_bytes()
    subprocess.run(command, check=True, timeout=900, **how)
    assert steps_of(log) == list(range(1, steps + 1)) and records.read_bytes() == before
    assert json.loads((folder / "table.json").read_text())["seeds"] == [0, 1]
    survived(f"real evaluation: {case}")

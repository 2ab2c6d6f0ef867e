"""Commands that the machine lets down in the middle: the last line says so, and nothing is lost."""

import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import inference
import train_classdiffusion
from tests.faults.kills import imports, spread
from tests.faults.shim import Fault, is_one_line, printed_by, survived, tried
from utils.common.errors import MORE_MEMORY
from utils.training.checkpoints import why_broken

FLAGS = {"max_train_steps": 8, "checkpointing_steps": 2, "resume_from_checkpoint": "latest"}


@pytest.fixture
def program(dog_flags: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch):
    """program(folder, **settings): a training of 8 steps, as `printed_by` takes it."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    imports("utils.training.outputs", "utils.training.run", "diffusers.optimization")
    return lambda folder, **more: lambda: train_classdiffusion.main(dog_flags(folder, **FLAGS | more))


ALL = pytest.mark.faults
DISKS = [("full", 1), pytest.param("full", 12, marks=ALL), pytest.param("shut", 6, marks=ALL)]


@pytest.mark.parametrize(("kind", "points"), DISKS)
def test_a_disk_that_ends_a_training(kind: str, points: int, program, tmp_path: Path):
    """From some operation on nothing can be written: one line after the bar, whole checkpoints, and with a
    disk that works the run goes on from the last of them."""
    whole, fault = tmp_path / "whole", Fault(kind, 10**6, str(tmp_path / "whole"))

    def install(fault: Fault) -> None:
        os.fsync = fault.fsync
        sys.addaudithook(fault.hook)

    counted = tmp_path / "count"

    def counting() -> None:
        program(whole)()
        counted.write_text(str(fault.count))

    assert printed_by(counting, lambda: install(fault))[0] == 0
    for number in spread(int(counted.read_text()), points):
        folder = tmp_path / f"{kind}-{number}"
        name = f"disk {kind} in mid-training"
        tried(name)
        code, lines = printed_by(program(folder), lambda f=folder, n=number: install(Fault(kind, n, str(f))))
        assert is_one_line(code, lines), lines
        assert "No space left" in lines[-1] or "Read-only file system" in lines[-1]
        assert not [path for path in folder.glob("checkpoint-*") if why_broken(path)]
        saved = max([int(path.name[11:]) for path in folder.glob("checkpoint-*")], default=0)
        code, lines = printed_by(program(folder))
        steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
        assert code == 0 and steps == list(range(1, 9)) and saved <= 8, lines
        survived(name)


def limited(megabytes: int) -> None:
    """No more address space than the process has now, and so much."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + megabytes * 2**20,) * 2)


MARGINS = [64, *(pytest.param(n, marks=ALL) for n in (1, 4, 16, 32, 128, 256))]


@pytest.mark.parametrize("megabytes", MARGINS)
def test_a_training_without_memory(megabytes: int, program, tmp_path: Path):
    """Checkpoints stay, and the line says at which step it was and which flags need less."""
    tried("small memory: train")
    run = program(tmp_path / "out", train_batch_size=48, resolution=256, checkpointing_steps=1)
    code, lines = printed_by(run, lambda: limited(megabytes))
    assert is_one_line(code, lines), lines[-5:]
    assert lines[-1].startswith("error: out of memory while "), lines[-1]
    assert "give --low_memory, --mixed_precision bf16, --train_batch_size 1, " in lines[-1]
    assert megabytes != 64 or "while training step 1: give" in lines[-1]
    survived("small memory: train")


@pytest.mark.parametrize("megabytes", MARGINS)
def test_a_drawing_without_memory(megabytes: int, concept: Path, tiny_base: Path):
    flags = [f"--base={tiny_base}", f"--concept={concept}", "--num_images=1024", "--batch_size=4096"]
    flags += ["--num_inference_steps=1", f"--output_dir={concept.parent / 'out'}"]
    tried("small memory: inference")
    code, lines = printed_by(lambda: inference.main(flags), lambda: limited(megabytes))
    assert is_one_line(code, lines), lines[-5:]
    assert lines[-1].startswith("error: out of memory while "), lines[-1]
    assert f": give a smaller --batch_size, or --dtype bf16; {MORE_MEMORY}" in lines[-1]
    survived("small memory: inference")

"""NUM_PROCESSES of the launch scripts, really started, on a machine without a GPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from utils.concepts.formats import read_concept

REPOSITORY = Path(__file__).resolve().parents[2]


def train(
    base: Path, images: Path, folder: Path, processes: int, batch: int, *more: str
) -> subprocess.CompletedProcess:
    """scripts/train_single.sh on a tiny base, started in `folder`; the concept is in folder/concept."""
    folder.mkdir(exist_ok=True)
    shutil.copy(REPOSITORY / "requirements.txt", folder / ".requirements")  # nothing to install
    variables = {
        "VIRTUAL_ENV": str(folder),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "BASE": str(base),
        "INSTANCE_DIR": str(images),
        "OUTPUT_DIR": "concept",
        "NUM_PROCESSES": str(processes),
    }
    settings = f"--train_batch_size={batch} --resolution=16 --max_train_steps=2 --learning_rate=1e-2".split()
    settings += ["--adam_epsilon=1e-3", "--validation_prompt=", *more]
    return subprocess.run(
        ["bash", str(REPOSITORY / "scripts" / "train_single.sh"), *settings],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_two_processes_of_a_launch_script_are_one_with_a_larger_batch(tiny_base, pictures, tmp_path):
    records, concepts = {}, {}
    for name, processes, batch in (("two", 2, 1), ("one", 1, 2)):
        done = train(tiny_base, pictures("dog"), tmp_path / name, processes, batch)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("the concept is in") == 1
        assert ("training in 2 processes, on the CPU" in done.stdout) == (name == "two")
        folder = tmp_path / name / "concept"
        records[name] = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        concepts[name] = read_concept(folder).weights | read_concept(folder).rows

    resumed = train(tiny_base, pictures("dog"), tmp_path / "two", 1, 1, "--resume_from_checkpoint=latest")
    more = train(tiny_base, pictures("dog"), tmp_path / "one", 2, 2, "--resume_from_checkpoint=latest")
    for done, has, ran in ((resumed, "1 process", 2), (more, "2 processes", 1)):
        errors = [line for line in done.stderr.splitlines() if line.strip()]
        assert done.returncode == 2 and len(errors) == 1, done.stderr
        assert errors[0].endswith(
            f"checkpoint-2 with {has}: it ran with {ran}; give NUM_PROCESSES={ran}, or start anew in another "
            "folder"
        )
    assert concepts["two"].keys() == concepts["one"].keys() and len(concepts["one"]) > 1
    for key, value in concepts["one"].items():
        assert (concepts["two"][key] - value).abs().max() < 5e-6, key
    for two, one in zip(records["two"], records["one"], strict=True):
        assert two == pytest.approx(one, rel=1e-5)
        assert two["lr_cross_attention_kv"] == pytest.approx(
            2e-2
        )  # --scale_lr counts the processes: one alone would have 1e-2


def test_a_launcher_whose_processes_would_work_alone_is_refused(tiny_base, pictures, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["train_classdiffusion.py", f"--pretrained_model_name_or_path={tiny_base}", "--cls_token=dog"]
    command += [f"--instance_data_dir={pictures('dog')}", "--instance_prompt=a <new1> dog"]
    environment = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    done = subprocess.run(
        [*command, f"--output_dir={tmp_path / 'out'}"],
        cwd=REPOSITORY,
        env=environment | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0 and not (tmp_path / "out").exists()
    errors = {line for line in done.stderr.splitlines() if line.startswith("error: ")}
    assert errors == {
        "error: 2 processes without a GPU would each work alone: set ACCELERATE_USE_CPU=true to join them"
    }

"""What the launch scripts start, by a stand-in for python that prints the training command."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from utils.config.train_config import TrainConfig, parse_config

REPOSITORY = Path(__file__).resolve().parents[2]
# Everything but the training is run; the machine has as many GPUs as GPUS says.
STAND_IN = f"""#!/usr/bin/env bash
case "$*" in
  *torch.cuda.device_count*) echo "$GPUS" ;;
  *--dry_run) ;;
  *train_classdiffusion.py*) printf "%s\\n" "USE_CPU=${{ACCELERATE_USE_CPU:-}}" "$@" ;;
  *) exec {sys.executable} "$@" ;;
esac
"""


def start(
    tmp_path: Path, script: str, *arguments: str, cwd: Path = REPOSITORY, gpus: int = 0, **variables: str
) -> subprocess.CompletedProcess:
    environment = tmp_path / "environment"
    environment.mkdir(exist_ok=True)
    shutil.copy(REPOSITORY / "requirements.txt", environment / ".requirements")  # nothing to install
    (tmp_path / "python").write_text(STAND_IN)
    (tmp_path / "python").chmod(0o755)
    ours = ("BASE", "CLASS", "OUTPUT_DIR", "INSTANCE_DIR", "CONCEPTS", "NUM_PROCESSES", "ACCELERATE_USE_CPU")
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(
        ["bash", str(REPOSITORY / "scripts" / script), *arguments],
        cwd=cwd,
        env=inherited
        | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "VIRTUAL_ENV": str(environment), "GPUS": str(gpus)}
        | variables,
        capture_output=True,
        text=True,
    )


def launched(tmp_path: Path, script: str, *arguments: str, **settings) -> TrainConfig:
    """The configuration that the training is started with."""
    done = start(tmp_path, script, *arguments, **settings)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    given = lines[lines.index("train_classdiffusion.py") + 1 :]
    return parse_config(given)


def test_one_concept_on_toon(tmp_path):
    config = launched(tmp_path, "train_single.sh")
    assert (config.method, config.cls_token, config.output_dir) == ("classdiffusion", "dog", "ckpt/dog")
    assert (config.lambda_spl, config.pretrained_model_name_or_path) == (1.0, "toon")


def test_two_concepts_in_the_papers_setting(tmp_path):
    config = launched(tmp_path, "train_multi.sh", BASE="sd15")
    assert [concept.cls_token for concept in config.concepts()] == ["teddy bear", "barn"]
    assert (config.lambda_spl, config.max_train_steps, config.train_batch_size) == (1.0, 800, 2)
    assert [config.learning_rate_of(rate) for rate in ("learning_rate", "token_learning_rate")] == [
        2e-5,
        2e-5,
    ]


def test_a_given_value_wins(tmp_path):
    config = launched(tmp_path, "train_single.sh", "--method=custom_diffusion", "--use_spl", "--seed=5")
    assert (config.method, config.lambda_spl) == ("custom_diffusion", 1.0)
    assert (config.num_class_images, config.seed) == (50, 5)
    assert launched(tmp_path, "train_single.sh", "--spl_weight=0.5").lambda_spl == 0.5


@pytest.mark.parametrize(("gpus", "use_cpu"), [(0, "true"), (2, ""), (4, "")])
def test_several_processes_are_started_by_torchrun(tmp_path, gpus, use_cpu):
    done = start(tmp_path, "train_single.sh", "--max_train_steps=7", gpus=gpus, NUM_PROCESSES="2")
    said, cpu, *command = done.stdout.splitlines()
    where = "one GPU each" if gpus else "on the CPU"
    assert (said, cpu) == (f"training in 2 processes, {where}", f"USE_CPU={use_cpu}")
    assert command[:5] == [
        "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train_classdiffusion.py"
    ]  # fmt: skip
    config = parse_config(command[5:])
    assert (config.max_train_steps, config.dry_run) == (7, False)


@pytest.mark.parametrize(
    ("variables", "gpus", "words"),
    [
        ({"NUM_PROCESSES": "2"}, 1, "NUM_PROCESSES=2, and this machine has 1 GPU(s): give at most 1"),
        ({"NUM_PROCESSES": "two"}, 0, "NUM_PROCESSES=two: give a whole number from 1 to 99"),
        ({"NUM_PROCESSES": "0"}, 0, "NUM_PROCESSES=0: give a whole number from 1 to 99"),
    ],
)
def test_a_mistake_in_a_variable_is_one_line(tmp_path, variables, gpus, words):
    done = start(tmp_path, "train_single.sh", gpus=gpus, **variables)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {words}\n")


def test_from_another_directory_variables_are_relative_to_it(tmp_path):
    (tmp_path / "my" / "sd").mkdir(parents=True)
    config = launched(
        tmp_path, "train_single.sh", cwd=tmp_path, INSTANCE_DIR="my/dog", OUTPUT_DIR="out", BASE="my/sd"
    )
    assert config.instance_data_dir == str(tmp_path / "my" / "dog")
    assert config.output_dir == str(tmp_path / "out")
    assert config.pretrained_model_name_or_path == str(tmp_path / "my" / "sd")
    assert (config.resolution, config.lambda_spl) == (None, 1.0)  # sd15's


def test_from_another_directory_defaults_are_the_repositorys(tmp_path):
    config = launched(tmp_path, "train_multi.sh", cwd=tmp_path)
    assert (config.concepts_list, config.output_dir) == ("data/concepts.json", "ckpt/teddy_bear_barn")

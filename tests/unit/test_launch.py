"""What the launch scripts hand to the training script, by stand-ins for the launchers that print it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from utils.training.config import TrainConfig, build_parser

REPOSITORY = Path(__file__).resolve().parents[2]


def launched(tmp_path: Path, script: str, *arguments: str, **variables: str) -> TrainConfig:
    environment = tmp_path / "environment"
    environment.mkdir(exist_ok=True)
    shutil.copy(REPOSITORY / "requirements.txt", environment / ".requirements")  # nothing to install
    for launcher in ("python", "accelerate"):
        (tmp_path / launcher).write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" {launcher} "$@"\n')
        (tmp_path / launcher).chmod(0o755)
    ours = ("BASE", "CLASS", "OUTPUT_DIR", "NUM_PROCESSES")
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    told = subprocess.run(
        ["bash", str(REPOSITORY / "scripts" / script), *arguments],
        env=inherited
        | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "VIRTUAL_ENV": str(environment)}
        | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = told.stdout.splitlines()
    assert lines[0] == ("accelerate" if "NUM_PROCESSES" in variables else "python")
    return TrainConfig(**vars(build_parser().parse_args(lines[lines.index("train_classdiffusion.py") + 1 :])))


def test_one_concept_on_toon(tmp_path):
    config = launched(tmp_path, "train_single.sh")
    assert (config.method, config.cls_token, config.output_dir) == ("classdiffusion", "dog", "ckpt/dog")
    assert (config.lambda_spl, config.pretrained_model_name_or_path) == (0.03, "data/toon/sd")


def test_two_concepts_in_the_papers_setting(tmp_path):
    config = launched(tmp_path, "train_multi.sh", BASE="sd15")
    assert [concept.cls_token for concept in config.concepts()] == ["teddy bear", "barn"]
    assert (config.lambda_spl, config.max_train_steps, config.train_batch_size) == (1.0, 800, 2)
    assert config.learning_rates(1) == (2e-5, 2e-5)


@pytest.mark.parametrize("arguments", [["--method", "custom_diffusion"], ["--method=textual_inversion"]])
def test_methods_without_spl_get_none(tmp_path, arguments):
    config = launched(tmp_path, "train_single.sh", *arguments)
    assert (config.method, config.lambda_spl) == (arguments[-1].removeprefix("--method="), 0.0)


def test_spl_added_to_another_method_has_the_settings_weight(tmp_path):
    config = launched(tmp_path, "train_single.sh", "--method=custom_diffusion", "--use_spl")
    assert (config.method, config.lambda_spl) == ("custom_diffusion", 0.03)


def test_several_processes_are_launched_after_a_check(tmp_path):
    config = launched(tmp_path, "train_single.sh", "--max_train_steps=7", NUM_PROCESSES="2")
    assert (config.max_train_steps, config.dry_run) == (7, False)


def test_a_given_weight_wins(tmp_path):
    assert launched(tmp_path, "train_single.sh", "--spl_weight=0.5").lambda_spl == 0.5

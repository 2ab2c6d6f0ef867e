"""train_classdiffusion.py as a user runs it: what it says, logs and writes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.end_to_end.training import (
    KV_NAMES,
    PROMPT,
    RATES,
    REPOSITORY,
    files_in,
    records,
)
from utils.training.lock import LOCK_FILE


@pytest.fixture(scope="module")
def official(tiny_base: Path, pictures, tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path]:
    """The official single-concept command, at the tiny model's size and without Weights & Biases."""
    folder = tmp_path_factory.mktemp("official")
    shutil.copytree(pictures("dog"), folder / "dog")
    (folder / "dog" / "notes.txt").touch()
    command = [
        *(sys.executable, "train_classdiffusion.py", f"--pretrained_model_name_or_path={tiny_base}"),
        *(f"--instance_data_dir={folder / 'dog'}", f"--output_dir={folder / 'out'}"),
        *(f"--instance_prompt={PROMPT}", "--resolution=16", "--train_batch_size=2", "--learning_rate=1e-5"),
        *(
            "--lr_warmup_steps=0",
            "--max_train_steps=3",
            "--scale_lr",
            "--hflip",
            "--modifier_token",
            "<new1>",
        ),
        *("--no_safe_serialization", "--use_spl", "--spl_weight=1", "--cls_token", "dog"),
        *("--report_to", "none", "--validation_steps=2", "--validation_prompt=a <new1> dog running"),
        *("--tracker_name", "custom-diffusion-multi", "--num_validation_images=2"),
        "--validation_inference_steps=2",
    ]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done, folder


def test_command_says_what_trains_on_what_and_where_the_concept_is(official, tiny_base):
    done, folder = official
    assert done.stdout.splitlines() == [
        f"skipped {folder / 'dog' / 'notes.txt'}: not an image",
        f"ClassDiffusion: <new1> dog, 3 images of 16 px, on {tiny_base}, 1 x cpu",
        "3 of 3 images are not square (one is 24 x 20): each is squashed to a square, up to 1.2 : 1; "
        "--buckets keeps their proportions",
        "steps 1 to 3: rows 32 at 2e-05, K/V 10,240 at 2e-05; loss L_denoise + 1 · L_spl",
        f"the concept is in {folder / 'out'}, its log in {folder / 'out' / 'log.jsonl'}",
    ]
    progress = [line for line in re.split(r"[\r\n]|\x1b\[A", done.stderr) if line]
    drawing = "2 of 'a <new1> dog running', 2 steps each: "
    progress = [line.strip() for line in progress if line.strip()]
    assert [line for line in progress if not line.startswith(("training: ", drawing))] == []
    bars = [line for line in progress if line.startswith("training: ")]
    assert "3/3" in bars[-1] and "loss_spl=" in bars[-1]
    assert any(line.startswith(drawing) for line in progress)


def test_command_logs_every_step(official):
    lines = records(official[1] / "out")
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert list(line) == ["step", "loss_denoise", "loss_spl", "loss", *RATES]
        assert line["lr_cross_attention_kv"] == pytest.approx(2e-5, rel=1e-12)  # 1e-5 x batch 2
        assert line["loss"] == pytest.approx(line["loss_denoise"] + line["loss_spl"], abs=1e-6)
        assert 0 < line["loss_spl"] < 2


def test_no_safe_serialization_writes_the_official_bin_files(official, base_weights):
    out = official[1] / "out"
    assert {path.name for path in out.rglob("*.safetensors")} == {"training_state.safetensors"}
    weights = torch.load(out / "pytorch_custom_diffusion_weights.bin", weights_only=True)
    kv = {key: value for key, value in weights.items() if isinstance(value, Tensor)}
    rename = {
        name.replace(".to_", ".processor.to_").replace(".weight", "_custom_diffusion.weight"): name
        for name in KV_NAMES
    }
    assert kv.keys() == rename.keys()
    moved = max((kv[key] - base_weights[name]).abs().max().item() for key, name in rename.items())
    assert 1e-5 < moved < 3 * 2.1e-5  # three AdamW steps of at most the learning rate
    token = torch.load(out / "new1.bin", weights_only=True)
    assert list(token) == ["<new1>"] and token["<new1>"].shape == (32,)
    assert (out / "new1.bin").stat().st_size < 10_000


def test_validation_images_at_every_multiple_and_at_the_end(official):
    folder = official[1] / "out" / "validation"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00002", "step-00003"]
    for step in folder.iterdir():
        assert sorted(path.name for path in step.iterdir()) == ["grid.png", "seed-0.png", "seed-1.png"]
        with Image.open(step / "seed-1.png") as picture:
            assert picture.size == (16, 16)
            assert picture.text == {"prompt": "a <new1> dog running", "seed": "1"}


def test_last_step_is_a_checkpoint_and_the_concept(official, tiny_base):
    out = official[1] / "out"
    (checkpoint,) = out.glob("checkpoint-*")
    assert checkpoint.name == "checkpoint-3"
    concept = {name for name in files_in(out) if "/" not in name and name not in ("log.jsonl", LOCK_FILE)}
    assert concept == {
        "pytorch_custom_diffusion_weights.bin",
        "new1.bin",
        "concept.json",
        "training_config.json",
    }
    assert files_in(checkpoint).keys() == concept | {"training_state.safetensors", "manifest.json"}
    for name in concept:
        assert (out / name).read_bytes() == (checkpoint / name).read_bytes()
    saved = json.loads((out / "training_config.json").read_text())
    assert (saved["resolution"], saved["scale_lr"], saved["validation_steps"]) == (16, True, 2)
    assert json.loads((out / "concept.json").read_text())["base"] == str(tiny_base)

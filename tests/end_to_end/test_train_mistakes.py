"""Plans and mistakes: one line before anything loads."""

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

import train_classdiffusion
import utils.bases.sd
import utils.config.output_flags
import utils.config.train_config
import utils.data.class_images
import utils.measures.validation
from tests.end_to_end.training import (
    PROMPT,
    REPOSITORY,
    files_in,
)
from utils.common.errors import exit_on_user_error
from utils.common.images import save_png


def test_dry_run_prints_the_plan_and_writes_nothing(train, tmp_path, capfd):
    train(tmp_path / "out", dry_run=True, scale_lr=True, token_learning_rate=1e-2, hflip=True)
    said = capfd.readouterr()
    plan = said.out.splitlines()
    assert json.loads("\n".join(plan[: plan.index("}") + 1]))["token_learning_rate"] == 1e-2
    memory = next(line for line in plan if line.startswith("memory: "))
    plan.remove(memory)
    assert memory.startswith("memory: weights 0.0") and memory.endswith(" GB, and activations")
    assert plan[plan.index("}") + 1 : -2] == [
        "method: classdiffusion (Huang et al. 2024, arXiv:2405.17532)",
        "steps 1 to 2: rows 32 at 0.02, K/V 10,240 at 0.002; loss L_denoise + 1 · L_spl",
        "plan: 2 steps of 2 images, 16 x 16, per process, from the beginning",
    ]
    assert plan[-2].startswith("concept: <new1> from ") and plan[-2].endswith(PROMPT)
    assert "images are not square (one is 24 x 20)" in plan[-1]
    assert said.err == "" and list(tmp_path.iterdir()) == []
    train(tmp_path / "out", dry_run=True, method="two_stage", initializer_token="ktn", max_train_steps=10)
    plan = capfd.readouterr().out.splitlines()
    stages = [line for line in plan if line.startswith("steps ")]
    assert stages[0] == "steps 1 to 6: rows 32 at 0.001; loss L_denoise + 0 · L_spl"
    assert re.fullmatch(r"steps 7 to 10: UNet [\d,]+ at 0\.001; loss L_denoise", stages[1])


MISTAKES = {
    "no image folder": (dict(instance_data_dir="{tmp}/none"), "folder {tmp}/none does not exist"),
    "empty image folder": (dict(instance_data_dir="{tmp}/empty"), "no images in {tmp}/empty"),
    "unreadable image": (dict(instance_data_dir="{tmp}/broken"), "cannot read image {tmp}/broken/1.png"),
    "prompt without token": (dict(instance_prompt="a photo of a dog"), "'a photo of a dog' lacks <new1>"),
    "known token": (
        dict(modifier_token="cat", instance_prompt="a cat dog"),
        "'cat' is already in the vocabulary",
    ),
    "initialiser of nothing": (dict(initializer_token="<|endoftext|>"), "is not in the vocabulary: try ktn"),
    "vectors of XTI": (
        dict(num_vectors=2, method="xti", instance_prompt=None),
        "--num_vectors 2: --method xti trains rows of each layer, which know tokens of one vector",
    ),
    "vectors of NeTI": (
        dict(num_vectors=2, method="neti", instance_prompt=None),
        "--num_vectors 2: --method neti trains ",
    ),
    "vectors of a token that does not learn": (
        dict(num_vectors=2, trains="unet", spl_weight=None, method="kv_only"),
        "--num_vectors has no effect on --method kv_only",
    ),
    "vectors read at one": (
        dict(num_vectors=2, spl_pool="modifier"),
        "--spl_pool modifier reads one vector, --num_vectors is 2: leave out one",
    ),
    "more tokens than concepts": (
        dict(modifier_token="<new1>+<new2>", cls_token="dog+cat"),
        "--modifier_token <new1>+<new2> for 1 concept",
    ),
    "more tokens than classes": (dict(modifier_token="<new1>+<new2>"), "--cls_token 'dog'"),
    "more classes than tokens": (dict(cls_token="dog+cat"), "--cls_token 'dog+cat'"),
    "more tokens than initialisers": (
        dict(modifier_token="<new1>+<new2>", cls_token="dog+cat", initializer_token="ktn"),
        "--initializer_token ktn",
    ),
    "malformed JSON": (
        dict(instance_data_dir=None, instance_prompt=None, concepts_list="{tmp}/list.json"),
        "{tmp}/list.json is not readable as JSON",
    ),
    "unknown learner": (dict(trains="unet+vae"), "--trains unet+vae: vae is unknown; choose from"),
    "SPL that reaches nothing": (dict(method="dreambooth", use_spl=True), "cannot reach what --method"),
    "SPL of a token without text states": (
        dict(method="neti", instance_prompt=None, trains="mapper+text_encoder", use_spl=True),
        "cannot read the text states of --method neti",
    ),
    "rate without use": (dict(method="dreambooth", token_learning_rate=1.0), "--token_learning_rate has no"),
    "SPL without class": (dict(cls_token=None), "needs --cls_token"),
    "added SPL without class": (
        dict(cls_token=None, method="kv_only", use_spl=True),
        "needs --cls_token",
    ),
    "resolution": (dict(resolution=20), "--resolution 20 is not a multiple of 8"),
    "resolution of this model": (
        dict(resolution=24, pretrained_model_name_or_path="{tmp}/deep"),
        "--resolution 24: this base model needs a multiple of 16",
    ),
    "no base model": (dict(pretrained_model_name_or_path="{tmp}/nope"), "base model {tmp}/nope"),
    "base model is a relative path": (dict(pretrained_model_name_or_path="data/nope"), "though data is one"),
    "base model is no name": (dict(pretrained_model_name_or_path="nope"), "base model nope"),
    "wandb": (dict(report_to="wandb"), "--report_to wandb: not installed"),
    "TF32 on a CPU": (dict(allow_tf32=True), "--allow_tf32 has no effect without a CUDA device"),
    "fp16 on a CPU": (dict(mixed_precision="fp16"), "fp16 needs a CUDA device"),
    "output file": (
        dict(output_dir="{tmp}/list.json"),
        "--output_dir {tmp}/list.json cannot be used: {tmp}/list.json is a file",
    ),
    "class images of something else": (
        dict(with_prior_preservation=True, class_prompt="a dog", class_data_dir="{tmp}/cats"),
        "{tmp}/cats/class-00000.png shows 'a cat', not 'a dog'",
    ),
    "unreadable class image": (
        dict(with_prior_preservation=True, class_prompt="a dog", class_data_dir="{tmp}/broken"),
        "cannot read image {tmp}/broken/1.png",
    ),
    "unknown flag": (dict(steps=5), "--steps=5"),
}


@pytest.fixture
def workplace(tmp_path: Path, tiny_base: Path, pictures, monkeypatch) -> Path:
    """The files that the mistakes are about; models must not load, and the Hub not be asked."""
    (tmp_path / "empty").mkdir()
    shutil.copytree(pictures("dog"), tmp_path / "broken")
    (tmp_path / "broken" / "1.png").write_bytes((tmp_path / "broken" / "1.png").read_bytes()[:200])
    (tmp_path / "list.json").write_text('[{"instance_prompt": ')
    shutil.copytree(tiny_base, tmp_path / "deep")
    vae = json.loads((tiny_base / "vae" / "config.json").read_text())
    (tmp_path / "deep" / "vae" / "config.json").write_text(json.dumps(vae | {"block_out_channels": [32] * 5}))
    (tmp_path / "cats").mkdir()
    cat = {"prompt": "a cat", "seed": 1}
    save_png(Image.new("RGB", (16, 16)), tmp_path / "cats" / "class-00000.png", cat)
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(train_classdiffusion, "set_up", None)
    monkeypatch.setattr("utils.bases.pretrained.hf_hub_download", None)
    monkeypatch.setattr(utils.config.output_flags, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path


@pytest.mark.parametrize(("settings", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_answered_in_one_line(settings, words, train, workplace, capfd):
    before = files_in(workplace)
    given = {"output_dir": workplace / "out"} | settings
    given = {k: v.format(tmp=workplace) if isinstance(v, str) else v for k, v in given.items()}
    output_dir = Path(given.pop("output_dir"))
    with pytest.raises(SystemExit) as left:
        exit_on_user_error(lambda: train(output_dir, **given))
    said = capfd.readouterr()
    assert (left.value.code, said.out) == (2, "")
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and said.err.endswith("\n")
    assert words.format(tmp=workplace) in said.err
    assert files_in(workplace) == before and not (workplace / "out").exists()


def test_command_answers_a_mistake_without_a_word_from_the_libraries(dog_flags, tmp_path):
    # The last of the checks, so that everything a mistake may import has been imported.
    flags = dog_flags(tmp_path / "out", resume_from_checkpoint=tmp_path / "none", hflip=True)
    command = [sys.executable, "train_classdiffusion.py", *flags]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --resume_from_checkpoint ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_launch_script_ends_a_mistake_with_one_line_and_status_2(tmp_path, processes):
    shutil.copy(REPOSITORY / "requirements.txt", tmp_path / ".requirements")  # nothing to install
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "scripts/train_single.sh", "--max_train_steps=0"],
        cwd=REPOSITORY,
        env=os.environ | {"VIRTUAL_ENV": str(tmp_path), "PATH": path, "NUM_PROCESSES": processes},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines() == ["error: --max_train_steps 0: give a number of at least 1"]

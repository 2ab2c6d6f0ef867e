"""The command that trains a subject: its settings, its environment, its failures."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.unit.common.test_process import alive
from utils.bases.registry import BASES
from utils.common.errors import UserError
from utils.config.train_config import TrainConfig, parse_config
from utils.evaluation import training_process
from utils.evaluation.data_sets import Individual, Subject
from utils.evaluation.sources import Source
from utils.evaluation.training_process import check_flags, flags_of, is_trained, train

REX = Subject("rex", (Individual("<new1>", "dog", Path("data/dog"), "a photo of a <new1> dog"),), ("a {}",))
BOTH = Subject(
    "both",
    (
        Individual("<new1>", "teddy bear", Path("data/teddy_bear"), "a photo of a <new1> teddy bear"),
        Individual("<new2>", "barn", Path("data/barn"), "a photo of a <new2> barn"),
    ),
    ("a {0} and a {1}",),
)


@pytest.fixture
def commands(monkeypatch) -> list[tuple[list[str], dict[str, str]]]:
    """The commands that would be run, with their environments; they succeed."""
    seen = []

    def run(command, log, environment):
        seen.append((command, environment))
        log.write_text("error: no such luck\n")
        return int(environment.get("FAILS", 0))

    monkeypatch.setattr(training_process, "run_child", run)
    return seen


def config(command: list[str]) -> TrainConfig:
    assert command[0] == sys.executable and command[1].endswith("train_classdiffusion.py")
    return parse_config(command[2:])


@pytest.mark.parametrize(("method", "weight"), [("classdiffusion", 1.0), ("custom_diffusion", 0.0)])
def test_methods_differ_in_nothing_but_their_name(commands, tmp_path, method, weight):
    train(REX, method, "base", ["--hflip"], tmp_path / "concept", torch.device("cpu"))
    found = config(commands[0][0])
    assert (found.method, found.lambda_spl, found.cls_token) == (method, weight, "dog")
    assert (found.pretrained_model_name_or_path, found.hflip) == ("base", True)
    assert (found.resume_from_checkpoint, found.output_dir) == ("latest", str(tmp_path / "concept"))
    assert found.concepts()[0].instance_prompt == "a photo of a <new1> dog"


@pytest.mark.parametrize("flags", [["--spl_weight=0.5", "--hflip"], ["--spl_weight", "0.5", "--hflip"]])
def test_the_weight_of_spl_goes_to_the_methods_that_have_it(commands, tmp_path, flags):
    for method in ("classdiffusion", "kv_only", "textual_inversion"):
        train(REX, method, "base", flags_of(method, flags), tmp_path / method, torch.device("cpu"))
    found = [config(command) for command, _ in commands]
    assert [each.lambda_spl for each in found] == [0.5, 0.0, 0.0]
    assert all(each.hflip for each in found)
    flags = flags_of("custom_diffusion", [*flags, "--use_spl"])
    train(REX, "custom_diffusion", "b", flags, tmp_path / "c", torch.device("cpu"))
    assert config(commands[-1][0]).lambda_spl == 0.5


def test_several_individuals_are_trained_together(commands, tmp_path):
    train(BOTH, "classdiffusion", "base", [], tmp_path / "concept", torch.device("cpu"))
    found = config(commands[0][0])
    assert [(c.modifier_token, c.cls_token) for c in found.concepts()] == [
        ("<new1>", "teddy bear"),
        ("<new2>", "barn"),
    ]
    assert json.loads((tmp_path / "concepts.json").read_text())[1]["instance_data_dir"] == "data/barn"


@pytest.mark.parametrize("method, named", [("kv_only", "<new1> dog"), ("textual_inversion", "<new1>")])
def test_a_checkpoint_is_chosen_among_all_by_images_of_the_subject(commands, tmp_path, method, named):
    chosen = ["--select_checkpoint=validation", "--checkpointing_steps=50", "--validation_prompt=a {} at sea"]
    check_flags(REX, method, "toon", chosen)
    for flags in ([], chosen):
        train(REX, method, "toon", flags, tmp_path / "concept", torch.device("cpu"))
    plain, choosing = (config(command) for command, _ in commands)
    assert (plain.select_checkpoint, plain.checkpoints_total_limit) == (None, 1)
    assert (choosing.select_checkpoint, choosing.checkpoints_total_limit) == ("validation", None)
    assert choosing.validation_prompt == f"a {named} at sea"


@pytest.mark.parametrize(("subject", "steps"), [(REX, 500), (BOTH, 800)])
def test_two_individuals_train_as_long_as_the_paper_says(subject, steps):
    source = Source([subject], ["classdiffusion"], BASES["sd15"], train_flags=("--hflip",))
    assert [flag for flag in source.flags("classdiffusion") if "steps" in flag] == [
        f"--max_train_steps={steps}"
    ]


def test_each_of_two_individuals_has_its_place(commands, tmp_path):
    flags = ["--validation_prompt=a {1} beside a {0}"]
    train(BOTH, "kv_only", "base", flags, tmp_path / "concept", torch.device("cpu"))
    expected = "a <new2> barn beside a <new1> teddy bear"
    assert config(commands[0][0]).validation_prompt == expected


def test_a_launcher_is_not_handed_on(commands, tmp_path, monkeypatch):
    mine = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK ROLE_RANK ROLE_WORLD_SIZE ROLE_NAME"
    mine += " GROUP_WORLD_SIZE MASTER_ADDR MASTER_PORT TORCHELASTIC_RUN_ID ACCELERATE_MIXED_PRECISION"
    for name in mine.split():
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    for device in ("cpu", "cuda:1"):
        train(REX, "classdiffusion", "b", [], tmp_path / "concept", torch.device(device))
    (_, on_cpu), (_, on_gpu) = commands
    assert not {*mine.split()} & {*on_cpu}
    assert (on_cpu["ACCELERATE_USE_CPU"], on_cpu["PATH"]) == ("true", training_process.os.environ["PATH"])
    assert (on_cpu["CUDA_VISIBLE_DEVICES"], on_gpu["CUDA_VISIBLE_DEVICES"]) == ("4,6", "6")


@pytest.mark.parametrize(("code", "kind"), [("2", UserError), ("3", FloatingPointError), ("1", RuntimeError)])
def test_a_failed_training_says_why(commands, tmp_path, monkeypatch, code, kind):
    monkeypatch.setenv("FAILS", code)
    with pytest.raises(kind, match="training rex with classdiffusion: no such luck"):
        train(REX, "classdiffusion", "b", [], tmp_path / "concept", torch.device("cpu"))
    assert not is_trained(tmp_path / "concept")


def test_a_training_that_a_signal_ends_is_one_line(commands, tmp_path, monkeypatch):
    monkeypatch.setenv("FAILS", str(-signal.SIGKILL))
    with pytest.raises(UserError, match="^training rex with classdiffusion: ended by SIGKILL; the same comm"):
        train(REX, "classdiffusion", "b", [], tmp_path / "concept", torch.device("cpu"))


def test_a_finished_training_keeps_no_checkpoint(commands, tmp_path):
    concept = tmp_path / "concept"
    (concept / "checkpoint-2").mkdir(parents=True)
    (concept / "training_config.json").touch()
    train(REX, "classdiffusion", "b", [], concept, torch.device("cpu"))
    assert [path.name for path in concept.iterdir()] == ["training_config.json"] and is_trained(concept)


def test_flags_are_checked_without_an_image_or_a_model(tiny_base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for subject in (REX, BOTH):
        check_flags(subject, "classdiffusion", str(tiny_base), ["--max_train_steps=3"])
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="--train_flags has --cls_token=cat, which an evaluation sets itself"):
        check_flags(REX, "classdiffusion", str(tiny_base), ["--cls_token=cat"])
    with pytest.raises(
        UserError, match="--train_flags has --config=run.toml, which an evaluation sets itself"
    ):
        check_flags(REX, "classdiffusion", str(tiny_base), ["--config=run.toml"])
    with pytest.raises(UserError, match="--train_flags: .*max_train_steps"):
        check_flags(REX, "classdiffusion", str(tiny_base), ["--max_train_steps=0"])


PARENT = """
import sys, torch
from pathlib import Path
from utils.evaluation import training_process
from tests.unit.evaluation.test_training_process import REX
training_process.REPOSITORY = Path(sys.argv[1])
training_process.train(REX, "classdiffusion", "b", [], Path(sys.argv[1], "concept"), torch.device("cpu"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's death signal is Linux's")
def test_a_training_ends_when_its_evaluation_is_killed(tmp_path):
    child = f"import os, time; open(r'{tmp_path}/pid', 'w').write(str(os.getpid())); time.sleep(300)"
    (tmp_path / "train_classdiffusion.py").write_text(child)
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)])
    pid = tmp_path / "pid"
    while not (pid.exists() and pid.read_text()):
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not alive(int(pid.read_text())):
            return
        time.sleep(0.05)
    pytest.fail("the training outlived its evaluation")

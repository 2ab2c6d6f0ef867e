"""The training flags of a base and a method, from scripts/settings."""

import subprocess
import sys

import pytest

from utils.bases.registry import BASES, REPOSITORY, base_row
from utils.config import settings
from utils.config.methods import METHODS
from utils.config.settings import SEMANTIC, read_setting, training_flags
from utils.config.train_config import TrainConfig, build_parser


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "common.txt").write_text("# a remark\n--hflip\n--learning_rate=1\n\n--seed=3\n")
    (tmp_path / "x" / "mine.txt").write_text("--learning_rate=2\n--spl_weight=0.5\n")
    monkeypatch.setattr(settings, "SETTINGS", tmp_path)


def test_a_methods_file_adds_to_the_common_flags_and_overrides_them(folder):
    assert read_setting("x", "mine") == ["--hflip", "--learning_rate=2", "--seed=3", "--spl_weight=0.5"]
    assert read_setting("x", "other") == ["--hflip", "--learning_rate=1", "--seed=3"]


def test_several_concepts_have_flags_of_their_own(folder):
    file = settings.SETTINGS / "x" / "mine.txt"
    file.write_text("several: --learning_rate=4\n" + file.read_text() + "several: --noaug\n")
    assert read_setting("x", "mine")[1] == "--learning_rate=2"
    several = ["--hflip", "--learning_rate=4", "--seed=3", "--spl_weight=0.5", "--noaug"]
    assert read_setting("x", "mine", several=True) == several


@pytest.mark.parametrize(("base", "one", "two"), [("sd15", 500, 800), ("sd21", 500, 800), ("toon", 300, 400)])
def test_two_concepts_train_longer(base, one, two):
    for token, steps in (("<new1>", one), ("<new1>+<new2>", two)):
        assert f"--max_train_steps={steps}" in training_flags(BASES[base], ["--modifier_token", token])


def test_the_default_method_is_the_trainings():
    assert TrainConfig.__dataclass_fields__["method"].default == SEMANTIC


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("method", METHODS)
def test_every_setting_is_a_training_configuration(base, method):
    row = BASES[base]
    flags = training_flags(row, [f"--method={method}"])
    assert flags[1:] == read_setting(row.settings, method) and len(flags) == len(
        {f.partition("=")[0] for f in flags}
    )
    given = [
        *flags,
        f"--method={method}",
        "--instance_data_dir=x",
        "--cls_token=dog",
    ]
    config = TrainConfig(**vars(build_parser().parse_args(given)))
    assert base_row(config.pretrained_model_name_or_path) is row
    assert config.lambda_spl == (1.0 if method == SEMANTIC else 0.0)
    assert config.resolution is None  # the base model's own


def test_use_spl_brings_the_bases_weight_to_any_method():
    assert "--spl_weight=1" in training_flags(BASES["toon"], ["--method", "kv_only", "--use_spl"])
    assert training_flags(BASES["toon"], ["--use_spl"]) == training_flags(BASES["toon"], [])


def test_command_prints_a_flag_a_line_without_torch():
    code = "import sys, runpy; sys.argv = ['settings', 'toon']\n"
    code += "runpy.run_module('utils.config.settings', run_name='__main__')\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.splitlines() == [*training_flags(BASES["toon"], []), "False"], done.stderr

"""Flags from a file: every field of the training configuration by name, types as strict as the flags'."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from utils.common.config_file import read_flags
from utils.common.errors import UserError
from utils.config.train_config import TrainConfig, parse_config

RUN = """
# a run
instance_data_dir = "data/dog"
cls_token = "dog"
learning_rate = 1      # a whole number for a number
hflip = true
noaug = false
train_batch_size = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    return path


def test_flags_by_name_and_the_command_line_wins(file: Path):
    config = parse_config(["--config", str(file), "--train_batch_size=5", "--preset=none"])
    assert config == TrainConfig(
        instance_data_dir="data/dog", cls_token="dog", learning_rate=1.0, hflip=True, train_batch_size=5
    )
    assert type(config.learning_rate) is float


def test_saved_configuration_is_the_same_configuration(tmp_path: Path):
    config = TrainConfig(instance_data_dir="x", cls_token="dog", spl_weight=0.25, learning_rate=1 / 3, seed=9)
    config.save(tmp_path / "training_config.json", images="a digest")
    assert parse_config([f"--config={tmp_path / 'training_config.json'}"]) == config


def test_every_field_can_be_written(tmp_path: Path):
    path = tmp_path / "all.toml"
    config = TrainConfig(instance_data_dir="x", cls_token="dog")
    lines = [f"{name} = {json.dumps(v)}" for name, v in asdict(config).items() if v is not None]
    assert len(lines) > 40
    path.write_text("\n".join(lines))
    assert TrainConfig(**read_flags(TrainConfig, path)) == config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rat = 1", "unknown key 'learning_rat': did you mean learning_rate?"),
        ("learning-rate = 1", "unknown key 'learning-rate': did you mean learning_rate?"),
        ("zzz = 1", "unknown key 'zzz'; see --help"),
        ("[training]\nseed = 1", "unknown key 'training'"),
        ("images = 'x'", "unknown key 'images'"),
        ("seed = 1.0", "seed must be a whole number, is 1.0"),
        ("seed = true", "seed must be a whole number, is True"),
        ("hflip = 1", "hflip must be true or false, is 1"),
        ("learning_rate = '1e-5'", "learning_rate must be a number, is '1e-5'"),
        ("cls_token = ['dog']", "cls_token must be text in quotes"),
        ("seed = ", "is not TOML"),
        ("seed = 1\nseed = 2", "is not TOML"),
        ("\udcff", "is not TOML"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, content: str, message: str):
    path = tmp_path / "run.toml"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as error:
        read_flags(TrainConfig, path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_limits_hold_for_the_file_too(file: Path):
    file.write_text(RUN + "seed = -1")
    with pytest.raises(UserError, match="--seed -1: give a number of at least 0"):
        parse_config(["--config", str(file)])
    with pytest.raises(UserError, match="cannot read --config .*none.toml: No such file"):
        parse_config(["--config", str(file.with_name("none.toml"))])
    file.with_suffix(".json").write_text("[1]")
    with pytest.raises(UserError, match="holds no flags"):
        parse_config(["--config", str(file.with_suffix(".json"))])

"""Command lines of a training, in a folder that holds what they name, and what is said of a mistake."""

import json
from pathlib import Path

import pytest

from utils.common.errors import UserError
from utils.config.train_config import TrainConfig, parse_config

TEDDY = {"instance_prompt": "a photo of a <new1> teddy bear", "instance_data_dir": "data/teddybear"}
BARN = {"instance_prompt": "a photo of a <new2> barn", "instance_data_dir": "data/barn"}


def write_list(content: object) -> None:
    Path("config/concept.json").write_text(content if isinstance(content, str) else json.dumps(content))


def single(*more: str) -> TrainConfig:
    flags = ["--instance_data_dir=data/dog", "--instance_prompt=a photo of a <new1> dog", "--cls_token=dog"]
    return parse_config(["--preset=none", *flags, *more])


def multi(*more: str) -> TrainConfig:
    flags = [
        "--concepts_list=config/concept.json",
        "--modifier_token=<new1>+<new2>",
        "--cls_token=teddy bear+barn",
    ]
    return parse_config([*flags, *more])


def mistake(make, *words: str) -> None:
    """`make()` raises a UserError of one line that contains every word."""
    with pytest.raises(UserError) as caught:
        make()
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message

"""The folder in which the command lines of tests/training_flags.py are parsed."""

from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from PIL import Image

import utils.config.output_flags
from tests.training_flags import BARN, TEDDY, write_list


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders and files that the official commands name; every tracker counts as installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        utils.config.output_flags, "find_spec", lambda name: ModuleSpec(name, None, origin=name)
    )
    for name in ("dog", "teddybear", "barn"):
        Path("data", name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(Path("data", name, "0.png"))
    Path("config").mkdir()
    write_list([TEDDY | {"class_prompt": "bear"}, BARN | {"class_prompt": "barn"}])
    return tmp_path

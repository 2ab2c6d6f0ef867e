"""Shared fixtures: a tiny Stable Diffusion on disk, images, the training command run in this process."""

import gc
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from scripts.speed.bases import random_base
from tests.clip_vocabulary import write_clip_tokenizer
from tests.tiny_models import tiny_pipeline
from utils.bases.single_file.cache import VARIABLE


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of single files, which is the tests' own."""
    os.environ[VARIABLE] = str(tmp_path_factory.mktemp("cache"))
    return Path(os.environ[VARIABLE])


def pytest_collection_finish() -> None:
    """Each training ends with a garbage collection: what the imports have made need not be searched by it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a saved tiny pipeline for 16 px images; tests must not write to it."""
    folder = tmp_path_factory.mktemp("base")
    tiny_pipeline(folder / "words").save_pretrained(folder / "sd")
    return folder / "sd"


@pytest.fixture(scope="session")
def sd15_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of SD 1.5's architecture with random weights and its real vocabulary: 4 GB; only read it."""
    folder = random_base("sd15", tmp_path_factory.mktemp("base") / "sd15")
    write_clip_tokenizer(folder / "tokenizer")
    return folder


@pytest.fixture(scope="session")
def sd15_unet() -> UNet2DConditionModel:
    """SD 1.5's UNet without numbers, on device meta."""
    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """pictures(name, count=3): a folder of images of coloured noise; tests must not write to it."""

    def folder_of(name: str, count: int = 3) -> Path:
        folder = tmp_path_factory.getbasetemp() / "pictures" / f"{name}-{count}"
        if not folder.exists():
            folder.mkdir(parents=True)
            rng = np.random.default_rng(len(name))
            for number in range(count):
                values = rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)
                Image.fromarray(values).resize((24, 20)).save(folder / f"{number}.png")
        return folder

    return folder_of


@pytest.fixture
def dog_flags(tiny_base: Path, pictures: Callable[..., Path]) -> Callable[..., list[str]]:
    """dog_flags(output_dir, **settings): a command line of 2 steps on a dog, changed by the settings.

    No preset. A setting of None removes its flag, True gives the flag without a value.
    """

    def flags(output_dir: Path, **settings: object) -> list[str]:
        merged = {
            "pretrained_model_name_or_path": tiny_base,
            "preset": "none",
            "instance_data_dir": pictures("dog"),
            "instance_prompt": "a photo of a <new1> dog",
            "cls_token": "dog",
            "output_dir": output_dir,
            "max_train_steps": 2,
            "learning_rate": 1e-3,
        } | settings
        given = {name: value for name, value in merged.items() if value is not None}
        return [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]

    return flags


@pytest.fixture
def train(dog_flags: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """train(output_dir, **settings): train_classdiffusion.py's main on the CPU; returns output_dir."""
    from accelerate.state import AcceleratorState, GradientState

    import train_classdiffusion

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def run(output_dir: Path, **settings: object) -> Path:
        # accelerate keeps its settings for the life of a process.
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        train_classdiffusion.main(dog_flags(output_dir, **settings))
        return output_dir

    return run

"""The flags of toon's programs: defaults as before, mistakes in one line, quick help."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from scripts.toon import (
    train_autoencoder,
    train_blip,
    train_clip,
    train_dino,
    train_motion,
    train_recogniser,
    train_unet,
)
from utils.common.errors import UserError
from utils.common.flags import parse

DEFAULTS = {  # steps, batch_size, lr, folder
    train_autoencoder: (8000, 8, 1e-3, "data/toon/sd/vae"),
    train_clip: (2000, 128, 1e-3, "data/toon"),
    train_recogniser: (1500, 64, 2e-3, "data/toon/recogniser"),
    train_blip: (4000, 48, 7e-4, "data/toon/blip"),
    train_dino: (1600, 64, 1e-3, "data/toon/dino"),
    train_unet: (10_000, 16, 6e-4, "data/toon/sd"),
    train_motion: (10_000, 2, 1e-3, "data/toon/motion_adapter"),
}
QUICK = """
import runpy, sys
module, sys.argv = sys.argv[1], sys.argv[1:]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit as left:
    loaded = [name for name in ("torch", "diffusers", "transformers", "tokenizers") if name in sys.modules]
    print("exit", left.code, "loaded", loaded)
"""


@pytest.mark.parametrize("program", DEFAULTS)
def test_the_defaults_are_those_of_the_embedded_models(program):
    flags = asdict(parse(program.Flags, [], ""))
    steps, batch_size, lr, folder = DEFAULTS[program]
    assert (flags["steps"], flags["batch_size"], flags["lr"]) == (steps, batch_size, lr)
    assert flags["output_dir"] == Path(folder) and flags["work_dir"] == Path("toon_build")
    assert (flags["resolution"], flags["seed"], flags.get("init_from")) == (64, 0, None)


@pytest.mark.parametrize(
    ("program", "flag", "message"),
    [
        (train_blip, "--batch_size=6", "--batch_size 6: give a multiple of 4"),
        (train_clip, "--batch_size=7", "--batch_size 7: give a multiple of 2"),
        (train_dino, "--resolution=60", "--resolution 60: give a multiple of 8"),
        (train_dino, "--lr=0", "--lr 0.0: give a number above 0"),
        (train_motion, "--base=missing", "--base missing is no folder: give one, or leave it out"),
        (
            train_unet,
            "--init_from=missing",
            "--init_from missing is no folder: give one, or leave it out",
        ),
        (train_unet, "--channels=64", "--channels 64: give two or more multiples of 16"),
    ],
)
def test_a_mistake_is_one_line(program, flag, message):
    with pytest.raises(UserError) as mistake:
        parse(program.Flags, [flag], "")
    assert str(mistake.value) == message


@pytest.mark.parametrize(
    "name",
    [
        "draw_examples",
        "tokenizer",
        "train_autoencoder",
        "train_clip",
        "train_recogniser",
        "train_blip",
        "train_dino",
        "train_unet",
        "train_motion",
        "benchmark_set",
        "prompt_accuracy",
        "motion_accuracy",
        "measure",
        "tune",
        "compare_flags",
        "train_part_reader",
        "part_accuracy",
    ],
)
def test_help_and_a_mistake_wait_for_no_library(name):
    for flag, code in (("--help", 0), ("--no_such_flag", 2)):
        command = [sys.executable, "-c", QUICK, f"scripts.toon.{name}", flag]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == f"exit {code} loaded []", done.stderr
        assert done.stderr.count("\n") == (code == 2)

"""The flags of toon's programs: defaults as before, mistakes in one line, quick help."""

import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from scripts.toon import build
from utils.common.errors import UserError
from utils.common.flags import parse

DEFAULTS = {  # of each model: steps, batch_size, lr, folder
    "autoencoder": (8000, 8, 1e-3, "data/toon/sd/vae"),
    "clip": (2000, 128, 1e-3, "data/toon"),
    "recogniser": (1500, 64, 2e-3, "data/toon/recogniser"),
    "blip": (4000, 48, 7e-4, "data/toon/blip"),
    "dino": (1600, 64, 1e-3, "data/toon/dino"),
    "unet": (10_000, 16, 6e-4, "data/toon/sd"),
    "motion": (10_000, 2, 1e-3, "data/toon/motion_adapter"),
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


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_defaults_are_those_of_the_embedded_models(name):
    flags = asdict(parse(build.SUBCOMMANDS[name].config, [], ""))
    steps, batch_size, lr, folder = DEFAULTS[name]
    assert (flags["steps"], flags["batch_size"], flags["lr"]) == (steps, batch_size, lr)
    assert flags["output_dir"] == Path(folder) and flags["work_dir"] == Path("toon_build")
    assert (flags["resolution"], flags["seed"], flags.get("init_from")) == (64, 0, None)


@pytest.mark.parametrize(
    ("name", "flag", "message"),
    [
        ("blip", "--batch_size=6", "--batch_size 6: give a multiple of 4"),
        ("clip", "--batch_size=7", "--batch_size 7: give a multiple of 2"),
        ("dino", "--resolution=60", "--resolution 60: give a multiple of 8"),
        ("dino", "--lr=0", "--lr 0.0: give a number above 0"),
        ("motion", "--base=missing", "--base missing is no folder: give one, or leave it out"),
        (
            "unet",
            "--init_from=missing",
            "--init_from missing is no folder: give one, or leave it out",
        ),
        ("unet", "--channels=64", "--channels 64: give two or more multiples of 16"),
    ],
)
def test_a_mistake_is_one_line(name, flag, message):
    with pytest.raises(UserError) as mistake:
        build.main([name, flag])
    assert str(mistake.value) == message


@pytest.mark.parametrize(
    "name",
    [
        "benchmark_set",
        "prompt_accuracy",
        "motion_accuracy",
        "measure",
        "tune",
        "compare_flags",
        "part_accuracy",
    ],
)
def test_help_and_a_mistake_wait_for_no_library(name):
    waits_for_no_library(f"scripts.toon.{name}")


@pytest.mark.parametrize("name", ["clip", "unet", "all"])
def test_help_and_a_mistake_of_a_model_wait_for_no_library(name):
    waits_for_no_library("scripts.toon.build")
    waits_for_no_library("scripts.toon.build", name)


def waits_for_no_library(*program: str) -> None:
    for flag, code in (("--help", 0), ("--no_such_flag", 2)):
        command = [sys.executable, "-c", QUICK, *program, flag]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == f"exit {code} loaded []", done.stderr
        assert done.stderr.count("\n") == (code == 2)


def test_all_makes_everything_in_order_with_shared_flags_for_all_and_the_unets_own(monkeypatch):
    made = []
    for name, command in build.SUBCOMMANDS.items():
        noted = replace(command, run=lambda config, name=name: made.append((name, config)))
        monkeypatch.setitem(build.SUBCOMMANDS, name, noted if name != "all" else command)
    for module in ("scripts.contextualizer", "scripts.toon.prompt_accuracy"):
        monkeypatch.setattr(f"{module}.main", lambda argv, module=module: made.append((module, argv)))
    build.main(["all", "--seed=3", "--work_dir=made", "--steps=7", "--channels", "16", "32"])
    names = [name for name, _ in made]
    assert names == [
        *("examples", "tokenizer", "autoencoder", "clip", "recogniser", "blip", "dino"),
        *("part_reader", "unet"),
        *("scripts.contextualizer", "scripts.toon.prompt_accuracy", "motion"),
    ]
    configs = dict(made)
    for name in ("autoencoder", "clip", "recogniser", "blip", "dino", "part_reader", "unet", "motion"):
        assert (configs[name].seed, configs[name].work_dir) == (3, Path("made"))
    assert (configs["unet"].steps, configs["unet"].channels) == (7, (16, 32))
    assert (configs["clip"].steps, configs["motion"].steps) == (2000, 10_000)
    assert configs["scripts.contextualizer"] == ["pretrain", "--base=toon"]
    assert configs["scripts.toon.prompt_accuracy"] == ["--output_dir=made/prompt_accuracy"]

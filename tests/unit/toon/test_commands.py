"""scripts.toon.build: mistakes in one line, and what `all` makes."""

from dataclasses import replace
from pathlib import Path

import pytest

from scripts.toon import build
from utils.common.errors import UserError


@pytest.mark.parametrize(
    ("name", "flag", "message"),
    [
        ("blip", "--batch_size=6", "--batch_size 6: give a multiple of 4"),
        ("clip", "--batch_size=7", "--batch_size 7: give a multiple of 2"),
        ("dino", "--resolution=60", "--resolution 60: give a multiple of 8"),
        ("dino", "--lr=0", "--lr 0.0: give a number above 0"),
        ("motion", "--base=missing", "--base missing is not a folder: give one, or leave it out"),
        (
            "unet",
            "--init_from=missing",
            "--init_from missing is not a folder: give one, or leave it out",
        ),
        ("unet", "--channels=64", "--channels 64: give two or more multiples of 16"),
    ],
)
def test_a_mistake_is_one_line(name, flag, message):
    with pytest.raises(UserError) as mistake:
        build.main([name, flag])
    assert str(mistake.value) == message


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

"""An individual's parts: what is true of it, what a reading gets right, and the reader that learns them."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from scripts.toon import build as build_models
from scripts.toon import part_accuracy
from scripts.toon.models.part_reader import (
    CHOICES,
    PartReader,
    Reading,
    build,
    loss_at,
    parts_of,
    portraits,
    right_parts,
    shares,
)
from scripts.toon.models.recogniser import split
from scripts.toon.world.examples import EXAMPLES
from scripts.toon.world.world import COLOURS, sample_look
from utils.common.errors import UserError

DOG = EXAMPLES["dog"]
RIGHT = Reading(body="white", belly="pink", ear="purple", collar="red", marking="spots", mark="purple")


def test_the_parts_of_the_dog():
    assert parts_of(DOG) == RIGHT
    assert all(right_parts(RIGHT, RIGHT).values())


def test_a_marking_in_the_bodys_colour_is_none():
    assert parts_of(replace(DOG, mark=DOG.body)).marking == "none"
    assert parts_of(replace(DOG, collar=None)).collar == "none"


@pytest.mark.parametrize(
    "change, wrong",
    [
        ({"body": "grey"}, {"body"}),
        ({"belly": "white"}, {"belly"}),
        ({"collar": "none"}, {"collar"}),
        ({"marking": "stripes"}, {"marking"}),
        ({"mark": "green"}, {"marking"}),
        ({"ear": "grey"}, {"ear"}),
    ],
)
def test_each_part_is_judged_by_itself(change, wrong):
    verdicts = right_parts(replace(RIGHT, **change), RIGHT)
    assert {part for part, right in verdicts.items() if not right} == wrong | ({"all"} if wrong else set())


def test_without_a_marking_its_colour_says_nothing():
    plain = replace(RIGHT, marking="none")
    assert right_parts(replace(plain, mark="dark"), plain)["marking"]


def test_colours_that_look_alike_are_the_same():
    grey, dark = replace(RIGHT, ear="grey"), replace(RIGHT, ear="dark")
    assert right_parts(grey, dark)["ear"]  # of a white dog
    assert not right_parts(replace(grey, body="red"), replace(dark, body="red"))["ear"]


def test_shares_count_images():
    wrong = replace(RIGHT, collar="blue")
    assert shares([RIGHT, wrong, wrong, wrong], [RIGHT] * 4) == {
        "body": 1.0,
        "belly": 1.0,
        "ear": 1.0,
        "collar": 0.25,
        "marking": 1.0,
        "all": 0.25,
    }


def test_portraits_are_animals_on_plain_grounds_with_nothing_else():
    drawn = portraits("test", 40)
    assert drawn[:5] == portraits("test", 5)
    assert {(scene.place, scene.worn, scene.neighbour) for scene in drawn} == {
        ("plain", "nothing", "nothing")
    }
    assert {scene.pose for scene in drawn} == {"standing", "sitting", "waving"}


def test_the_reader_learns():
    torch.manual_seed(0)
    model = build(Path("data/toon/recogniser"))
    loss_of = loss_at(model, size=64, batch_size=8, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    losses = []
    for _ in range(12):  # of one batch
        loss = loss_of(0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert loss_of(1).item() != pytest.approx(loss_of(2).item())


def test_a_reading_is_the_likeliest_word_of_each_part():
    reader = PartReader(build(Path("data/toon/recogniser")))
    images = [Image.new("RGB", (64, 64), (90, 200, 30)), Image.new("RGB", (128, 128))]
    readings = reader.read(images)
    assert len(readings) == 2
    logits = torch.zeros(1, 47)
    logits[0, 3] = 9.0  # of the body: brown
    logits[0, 12] = 9.0  # of the belly: pink
    logits[0, 25] = 9.0  # of the ears: dark
    reader.model.forward = lambda pixels: type("Out", (), {"logits": logits})
    (read,) = reader.read(images[:1])
    assert read == Reading("brown", "pink", "dark", "none", "none", "white")
    assert [values.shape[1] for values in split(logits, CHOICES).values()] == [11, 3, 12, 4, 5, 12]


def test_a_few_steps_write_a_reader_that_loads(tmp_path, capsys):
    folder = tmp_path / "reader"
    build_models.main(
        ["part_reader", "--steps=2", "--batch_size=4", f"--work_dir={tmp_path}", f"--output_dir={folder}"]
    )
    assert "part reader: all " in capsys.readouterr().out
    reading = PartReader(folder).read([Image.new("RGB", (64, 64))])[0]
    assert reading.body in COLOURS


def test_individuals_are_judged_once_and_their_shares_averaged(tmp_path, monkeypatch, capsys):
    trained, judged = [], []

    def train(method, flags, each, folder, classes):
        trained.append((method, each.number, each.kind))

    class Judge:
        def __init__(self, config):
            pass

        def __call__(self, each, look, concept):
            judged.append((look, concept))
            share = {"all": 0.5 if each.number == part_accuracy.DOG else 1.0}
            return {"concept": share, "base": {"all": 0.0}, "own images": {"all": 1.0}, "words": 0.75}

    monkeypatch.setattr(part_accuracy, "train", train)
    monkeypatch.setattr(part_accuracy, "Judge", Judge)
    (tmp_path / "reader").mkdir()
    flags = [f"--reader={tmp_path / 'reader'}", f"--output_dir={tmp_path}", "--individuals=1"]
    part_accuracy.main(flags)
    assert trained == [("classdiffusion", part_accuracy.DOG, "dog"), ("classdiffusion", 0, "dog")]
    assert judged[0] == (DOG, tmp_path / "classdiffusion" / "dog")
    assert judged[1][0] == sample_look(random.Random("tuning/0"), "dog")
    printed = capsys.readouterr().out
    assert "concept: all 75.0%" in printed and "words: 75.0%; means of 2 individuals" in printed
    numbers = json.loads((tmp_path / "classdiffusion.json").read_text())
    assert numbers["dog"]["concept"] == {"all": 0.5}
    part_accuracy.main(flags)
    assert len(trained) == 2


def test_without_a_reader_the_command_says_how_to_make_one(tmp_path):
    with pytest.raises(UserError, match="python -m scripts.toon.build part_reader makes it"):
        part_accuracy.main([f"--reader={tmp_path / 'none'}", f"--output_dir={tmp_path}"])


def test_a_damaged_reader_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="part reader .* cannot be loaded"):
        PartReader(tmp_path)

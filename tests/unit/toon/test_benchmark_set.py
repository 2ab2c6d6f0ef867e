"""The toon benchmark: its individuals, its prompts, and the judge that reads them off an image."""

import random
from dataclasses import replace

import pytest
from PIL import Image

from scripts.toon.benchmark_set import CHANGES, Obedience, benchmark, draw, facts_of_templates, look_of
from scripts.toon.world.captions import caption
from scripts.toon.world.render import render
from scripts.toon.world.world import ANIMALS, COLOURS, Scene, sample_look
from utils.common.errors import UserError


def test_twelve_individuals_of_four_classes_that_are_not_those_of_tuning(tmp_path):
    subjects = benchmark(tmp_path)
    assert len(subjects) == 12 and len({subject.name for subject in subjects}) == 12
    classes = [subject.cls for subject in subjects]
    assert {cls: classes.count(cls) for cls in classes} == {"dog": 3, "cat": 3, "rabbit": 3, "pig": 3}
    looks = [look_of(i) for i in range(12)]
    tuning = [sample_look(random.Random(f"tuning/{i}"), looks[i % 12].kind) for i in range(24)]
    assert len({*looks}) == 12 and not {*looks} & {*tuning}


def test_prompts_ask_for_what_the_images_do_not_show():
    facts = facts_of_templates()
    assert len(facts) == len(CHANGES) == 26
    assert facts["a photo of a {} in the snow"] == {"place": "snow"}
    assert facts["a photo of a purple {}"] == {"colour": "purple"}
    assert facts["a photo of a {} wearing a hat next to a flower"] == {"worn": "hat", "neighbour": "flower"}
    stated = {name for states in facts.values() for name in states}
    assert stated == {"place", "worn", "neighbour", "colour"}
    assert sum(len(states) == 2 for states in facts.values()) == 8
    asked = {states["colour"] for states in facts.values() if "colour" in states}
    assert not asked & {look_of(i).colour for i in range(12)} and asked < COLOURS.keys()


def test_prompts_are_in_the_words_of_training_captions():
    words = set()
    for i in range(400):
        rng = random.Random(i)
        scene = Scene(
            sample_look(rng, rng.choice(ANIMALS)), place=rng.choice(("beach", "snow", "jungle", "street"))
        )
        words |= set(caption(scene, rng).split())
    known = words | set(
        "wearing headphones sunglasses hat scarf next to ball tree flower front barn pool grass".split()
    )
    for template in facts_of_templates():
        assert set(template.split()) - {"{}"} <= known, template


def test_images_are_drawn_once_and_the_same_every_time(tmp_path):
    (one,) = benchmark(tmp_path / "a", ["cat_5"])
    draw([one])
    files = sorted((tmp_path / "a" / "cat_5").iterdir())
    assert [file.name for file in files] == [f"{i}.png" for i in range(5)]
    files[0].write_bytes(b"kept")
    files[1].unlink()
    before = files[2].read_bytes()
    draw([one])
    assert files[0].read_bytes() == b"kept"
    (two,) = benchmark(tmp_path / "b", ["cat_5"])
    draw([two])
    assert (tmp_path / "b" / "cat_5" / "1.png").read_bytes() == files[1].read_bytes()
    assert (tmp_path / "b" / "cat_5" / "2.png").read_bytes() == before
    with pytest.raises(UserError, match="has no subject cow_1; it has dog_0"):
        benchmark(tmp_path, ["cow_1"])


class Reads:
    """A recogniser that reads the same off every image."""

    def read(self, pictures):
        facts = {"class": "dog", "place": "snow", "worn": "hat", "neighbour": "nothing", "colour": "red"}
        return [facts] * len(pictures)


def test_only_what_a_prompt_states_is_judged(tmp_path):
    judge = Obedience()
    judge.recogniser = Reads()
    texts = [
        "a photo of a dog in the snow",
        "a photo of a cat wearing a hat",
        "a photo of a dog wearing a scarf",
    ]
    assert judge([Image.new("RGB", (8, 8))] * 3, texts) == [
        {"class": True, "place": True, "all": True},
        {"class": False, "worn": True, "all": False},
        {"class": True, "worn": False, "all": False},
    ]
    subjects = benchmark(tmp_path)
    assert judge.knows(subjects)
    assert not judge.knows([*subjects, replace(subjects[0], templates=("a {} on the moon",))])


def test_the_judge_sees_what_renders_show():
    judge = Obedience()
    scenes = [
        Scene(look_of(0), place="snow"),
        Scene(look_of(0), worn="hat", place="street"),
        Scene(look_of(0), place="beach"),
    ]
    texts = ["a photo of a dog in the snow", "a photo of a dog wearing a hat on the street"]
    verdicts = judge([render(scene, 64) for scene in scenes], [*texts, "a photo of a dog in the jungle"])
    assert [verdict["all"] for verdict in verdicts] == [True, True, False]
    assert verdicts[2] == {"class": True, "place": False, "all": False}

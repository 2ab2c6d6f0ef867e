"""The toon world: captions tell the truth, held-out triples stay out, images follow from scenes."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from scripts.toon.models.training import scenes
from scripts.toon.prompt_accuracy import Flags
from scripts.toon.world.captions import ATTRIBUTES, attributes, caption, part_facts, part_words, with_article
from scripts.toon.world.examples import EXAMPLES, plain_scenes
from scripts.toon.world.individuals import visibly_differ
from scripts.toon.world.prompts import pair_situations, part_prompts, situations, stated
from scripts.toon.world.render import render
from scripts.toon.world.world import (
    BELLIES,
    COLLARS,
    COLOURS,
    HELD_OUT,
    PLACE_WORDS,
    PLACES,
    WORN_WORDS,
    Scene,
    darker,
    is_held_out,
    repainted,
    sample_look,
    with_free_parts,
)
from utils.common.errors import UserError


def test_training_scenes_hold_no_held_out_triple_and_held_out_scenes_hold_one():
    assert not any(is_held_out(scene) for scene in scenes("a", 500))
    drawn = scenes("a", 500, held_out=True)
    assert all(map(is_held_out, drawn))
    found = {triple for scene in drawn for triple in HELD_OUT if _holds(scene, triple)}
    assert found == HELD_OUT


def _holds(scene: Scene, triple: frozenset[str]) -> bool:
    return triple <= {scene.subject.kind, scene.place, scene.worn, scene.neighbour}


def test_scene_i_depends_on_the_seed_and_i_alone():
    assert scenes("a", 8)[5] == scenes("a", 6)[5] != scenes("b", 6)[5]


def test_captions_tell_the_truth():
    rng = random.Random(0)
    for scene in scenes("captions", 300):
        text, subject = caption(scene, rng), scene.subject
        assert subject.kind in text
        others = [c for c in COLOURS if c != subject.colour and f" {c} " in f" {text} "]
        assert not others, (text, subject.colour)
        assert (scene.place == "plain") == (not any(w in text for p in PLACE_WORDS.values() for w in p))
        assert ("wearing" in text) == (scene.worn != "nothing")
        assert scene.worn == "nothing" or WORN_WORDS[scene.worn] in text
        assert ("in front of a barn" in text) == (scene.neighbour == "barn")
        assert scene.pose == "standing" or scene.pose in text


def test_every_attribute_value_occurs():
    drawn = [attributes(scene) for scene in scenes("values", 1500)]
    for name, values in ATTRIBUTES.items():
        assert {facts[name] for facts in drawn} - {None} == set(values)


def test_an_image_is_a_function_of_its_scene():
    scene = scenes("render", 1)[0]
    first, again = (np.asarray(render(scene, 64)) for _ in range(2))
    assert first.shape == (64, 64, 3)
    assert (first == again).all()
    assert (np.asarray(render(replace(scene, seed=scene.seed + 1, x=0.3), 64)) != first).any()


def test_worn_things_and_poses_change_the_image_where_they_should():
    look = sample_look(random.Random(1), "dog")
    plain = np.asarray(render(Scene(look), 64), dtype=int)
    for change in ({"worn": worn} for worn in WORN_WORDS):
        moved = np.abs(np.asarray(render(Scene(look, **change), 64), dtype=int) - plain).sum(axis=2) > 30
        assert 30 < moved.sum() < 64 * 64 / 3, change
    jumping = np.asarray(render(Scene(look, pose="jumping"), 64), dtype=int)
    assert (np.abs(jumping - plain).sum(axis=2) > 30).sum() > 200


def test_articles():
    assert with_article("a photo of a orange cat") == "a photo of an orange cat"
    assert with_article("a far away photo of a dog") == "a far away photo of a dog"


def test_there_are_thousands_of_individuals_and_no_part_has_a_colour_outside_its_palette():
    looks = {sample_look(random.Random(i), "dog") for i in range(4000)}
    assert len(looks) > 2000
    darker = {tuple(int(c * 0.6) for c in rgb) for rgb in COLOURS.values()}
    for look in looks:
        assert look.body == COLOURS[look.colour] and look.belly in BELLIES.values()
        assert {look.ear, look.mark} <= darker | {*COLOURS.values()}
        assert look.collar in (None, *(COLOURS[name] for name in COLLARS))


def test_free_parts_are_drawn_evenly_and_keep_the_body():
    plain = [sample_look(random.Random(i), "dog") for i in range(4000)]
    free = [with_free_parts(look, random.Random(i)) for i, look in enumerate(plain)]
    assert all(
        (a.kind, a.colour, a.body) == (b.kind, b.colour, b.body) for a, b in zip(plain, free, strict=True)
    )
    ears = Counter(part_facts(look)["ear"] for look in free)
    assert set(ears) == {*COLOURS, "dark"}
    assert all(250 < count < 420 for count in ears.values()), ears  # a twelfth of 4,000 is 333
    assert Counter(part_facts(look)["ear"] for look in plain)["dark"] > 2000  # what it is there to mend
    same = sum(look.ear == look.mark for look in free)
    assert same < 500  # a twelfth where they are independent


def test_repainting_a_part_changes_that_part_alone():
    for i in range(50):
        look = with_free_parts(sample_look(random.Random(i), "cat"), random.Random(i))
        for part in ("ear", "belly", "collar", "marking"):
            other = repainted(look, part)
            fields = ("kind", "colour", "body", "belly", "ear", "eye", "collar", "marking", "mark")
            changed = {name for name in fields if getattr(look, name) != getattr(other, name)}
            absent = getattr(look, part) in (None, "none")
            assert changed == (set() if absent else {part})


def test_captions_name_as_many_parts_and_barn_colours_as_they_are_asked():
    counts, barns = Counter(), Counter()
    for i, scene in enumerate(scenes("parts", 2000)):
        text = caption(scene, random.Random(i), parts=1, most=3, barn_colours=1)
        named = [words for words in part_words(scene.subject).values() if words in text]
        alone = scene.neighbour == "nothing"
        busy = scene.worn != "nothing" or scene.pose != "standing"
        assert len(named) <= (2 if busy else 3) - (not alone), text
        counts[len(named)] += 1
        if scene.barn is not None:
            barns[f"{scene.barn.colour} barn" in text] += 1
    assert counts[1] and counts[2] and counts[3] and set(barns) == {True}
    assert darker(COLOURS["white"]) == (144, 142, 139)


def test_examples_are_individuals_of_the_world_on_plain_grounds():
    for name, look in EXAMPLES.items():
        drawn = plain_scenes(look, f"examples/{name}")
        assert len(drawn) == 5
        assert {(s.place, s.worn, s.neighbour) for s in drawn} == {("plain", "nothing", "nothing")}
        assert (
            look.body == COLOURS[look.colour]
            and look.belly in BELLIES.values()
            and look.mark in COLOURS.values()
        )


def test_situations_state_what_their_prompt_says():
    prompts = dict(situations("dog", "<new1> dog"))
    assert prompts["a photo of a <new1> dog wearing headphones on the beach"] == {
        "class": "dog",
        "worn": "headphones",
        "place": "beach",
    }
    assert len(prompts) >= 20
    scene = Scene(sample_look(random.Random(2), "cat"), place="snow")
    assert stated(scene, colour=False) == {"class": "cat", "place": "snow"}


def test_a_pair_stands_in_every_place_under_its_own_names():
    prompts = dict(pair_situations("teddy bear", "<new1> teddy bear", "<new2> barn"))
    assert len(prompts) == len(PLACES)
    words = {"class": "teddy bear", "neighbour": "barn"}
    assert prompts["a photo of a <new1> teddy bear in front of a <new2> barn"] == words
    in_the_snow = "a photo of a <new1> teddy bear in front of a <new2> barn in the snow"
    assert prompts[in_the_snow] == words | {"place": "snow"}
    of_classes = [text for text, _ in pair_situations("dog", "dog", "barn")]
    assert of_classes[0] == "a photo of a dog in front of a barn"


@pytest.mark.parametrize("flag, value", [("prompt_set", "other"), ("prompts", 3)])
def test_flags_of_random_prompts_are_refused_where_prompts_are_fixed(tmp_path, flag, value):
    with pytest.raises(UserError, match=f"--{flag} has no effect with --concept"):
        Flags(concept=tmp_path, **{flag: value})


def test_part_prompts_name_one_to_three_parts_of_an_animal_that_has_them():
    prompts = part_prompts("test", 300)
    assert prompts[:5] == part_prompts("test", 5)
    counts = Counter(len(prompt.named) for prompt in prompts)
    assert set(counts) == {1, 2, 3} and min(counts.values()) > 60
    for prompt in prompts:
        words = part_words(prompt.look)
        assert all((with_article(words[part]) in prompt.text) == (part in prompt.named) for part in words)
        assert f"{prompt.look.colour} {prompt.look.kind} with " in prompt.text
        assert "marking" not in prompt.named or visibly_differ(prompt.look.mark, prompt.look.body)
    ears = Counter(part_facts(p.look)["ear"] for p in prompts if "ear" in p.named)
    assert len(ears) == 12 and max(ears.values()) < 40  # of about 150, evenly in 12 colours

"""The context-rich prompts: how many, that they differ, and how one is drawn."""

import random
from collections import Counter

import pytest

from scripts.contextualizer import main
from utils.common.errors import UserError
from utils.losses.context_prompts import HEADS, KINDS, TYPES, draw_parts, draw_prompt, kind_of, prompts_of


@pytest.mark.parametrize("kind", KINDS)
def test_there_are_30000_prompts_of_each_kind_and_no_two_are_equal(kind):
    prompts = [prompt for name in TYPES for prompt in prompts_of(kind, name)]
    assert len(prompts) == len(set(prompts)) == {"pets": 46_036, "things": 44_144}[kind]
    assert all(prompt.count("{}") == 1 and prompt == " ".join(prompt.split()) for prompt in prompts)


def test_some_prompts_of_each_type():
    assert "a {} on the beach at sunset" in prompts_of("pets", "backgrounds")
    assert "a {} in front of an orange barn" in prompts_of("things", "relations")
    assert "a {} wearing sunglasses and a scarf" in prompts_of("pets", "worn")
    assert "a {} decorated with a red ribbon" in prompts_of("things", "worn")
    assert "a {} chasing a ball in the snow" in prompts_of("pets", "interactions")
    assert "a girl holding a {}" in prompts_of("things", "interactions")
    assert "an oil painting of a {} in a frame" in prompts_of("pets", "styles")


def test_types_are_drawn_alike_though_most_prompts_are_relations():
    rng = random.Random(0)
    type_of = {prompt: name for name in TYPES for prompt in prompts_of("pets", name)}
    drawn = Counter(type_of[draw_parts("pets", rng)[1]] for _ in range(5000))
    assert set(drawn) == set(TYPES) and all(900 < count < 1100 for count in drawn.values())


def test_a_drawn_prompt_begins_with_a_head_unless_it_is_a_style():
    rng = random.Random(0)
    styles = set(prompts_of("things", "styles"))
    for _ in range(500):
        prompt = draw_prompt("things", rng)
        assert prompt in styles or any(prompt.startswith(f"{head} a".strip()) for head in HEADS)


def test_the_last_word_of_a_class_decides_its_kind():
    assert [kind_of(word) for word in ("dog", "teddy bear", "Cat")] == ["pets"] * 3
    assert [kind_of(word) for word in ("backpack", "dog house", "barn")] == ["things"] * 3


def test_the_command(capsys):
    main(["prompts", "--kind", "pets", "--type", "worn", "--count", "20"])
    lines = capsys.readouterr().out.splitlines()
    assert len(set(lines)) == 20 and all(line.startswith("a <new1> dog wearing ") for line in lines)
    main(["prompts", "--summary"])
    assert capsys.readouterr().out.splitlines()[-1].split() == ["all", "46,036", "44,144"]
    with pytest.raises(UserError, match="--type foo is unknown: choose from backgrounds, relations"):
        main(["prompts", "--type", "foo"])

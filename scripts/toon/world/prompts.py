"""What the base model and concepts are asked to draw on toon, and what each prompt states."""

import random
from dataclasses import dataclass, replace

from scripts.toon.world.captions import attributes, describe, part_words, subject_words, with_article
from scripts.toon.world.individuals import visibly_differ
from scripts.toon.world.world import (
    ANIMALS,
    ONE_CHANGE,
    PLACES,
    TWO_CHANGES,
    Look,
    Scene,
    sample_look,
    with_free_parts,
)

Prompt = tuple[str, dict[str, str]]  # the text, and the attributes that it states


@dataclass(frozen=True)
class PartPrompt:
    """A prompt that names parts of an animal: "a photo of a white dog with purple ears and a red collar"."""

    text: str
    look: Look  # an animal that the prompt describes
    named: tuple[str, ...]  # of "ear", "belly", "collar" and "marking"


def unseen(kind: str) -> Look:
    """Any individual of the class, in a scene that is only put into words."""
    return Look(kind, None, (0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0), None, "none", (0, 0, 0))


def stated(scene: Scene, colour: bool) -> dict[str, str]:
    """The attributes that a canonical prompt for this scene puts into words."""
    silent = {"place": "plain", "worn": "nothing", "neighbour": "nothing", "pose": "standing"}
    facts = {name: value for name, value in attributes(scene).items() if silent.get(name) != value}
    if not colour:
        facts.pop("colour", None)
    return {name: value for name, value in facts.items() if value is not None}


def random_prompts(seed: str, count: int, held_out: bool) -> list[Prompt]:
    """'a photo of a white dog wearing a hat on the beach', …; every named colour is stated."""
    from scripts.toon.models.training import scenes

    drawn = scenes(seed, count, held_out)
    texts = [
        with_article(f"a photo of a {describe(scene, subject_words(scene, colour=True))}") for scene in drawn
    ]
    return [(text, stated(scene, colour=True)) for text, scene in zip(texts, drawn, strict=True)]


def part_prompts(seed: str, count: int) -> list[PartPrompt]:
    """Prompts of any animal in any colour that name one to three of its parts, evenly; the i-th is a function
    of (seed, i) alone. A marking in the body's colour is not named: nothing would show it."""
    prompts = []
    while len(prompts) < count:
        rng = random.Random(f"{seed}/{len(prompts)}")
        look = with_free_parts(sample_look(rng, rng.choice(ANIMALS)), rng)
        words = part_words(look)
        if not visibly_differ(look.mark, look.body):
            words.pop("marking", None)
        named = tuple(rng.sample(list(words), min(len(words), rng.randint(1, 3))))
        subject = f"{look.colour} {look.kind} with {' and '.join(words[part] for part in named)}"
        prompts.append(PartPrompt(with_article(f"a photo of a {subject}"), look, named))
    return prompts


def situations(kind: str, subject: str) -> list[Prompt]:
    """What the images of the concept never show: places, worn things, neighbours, poses, two at once."""
    plain = Scene(unseen(kind))
    poses = [{"pose": pose} for pose in ("sitting", "running", "jumping")]
    changes = [*ONE_CHANGE, *poses, *TWO_CHANGES, {"pose": "running", "place": "beach"}]
    drawn = [replace(plain, **change) for change in changes]
    texts = [with_article(f"a photo of a {describe(scene, subject)}") for scene in drawn]
    return [(text, stated(scene, colour=False)) for text, scene in zip(texts, drawn, strict=True)]


def pair_situations(kind: str, subject: str, barn: str) -> list[Prompt]:
    """The subject in front of a barn, on plain grounds and in every place.

    subject, barn: how the prompts name them, "<new1> dog", "<new2> barn".
    """
    drawn = [Scene(unseen(kind), place=place, neighbour="barn") for place in PLACES]
    texts = [with_article(f"a photo of a {describe(scene, subject, barn=barn)}") for scene in drawn]
    return [(text, stated(scene, colour=False)) for text, scene in zip(texts, drawn, strict=True)]

"""What is said of a scene: captions as the web might write them, and its labels."""

import random
import re

from scripts.toon.world.world import (
    BELLIES,
    COLLARS,
    COLOURS,
    KINDS,
    MARKING_WORDS,
    MARKINGS,
    NEIGHBOURS,
    OBJECTS,
    PLACE_WORDS,
    PLACES,
    POSES,
    RARE_WORDS,
    RGB,
    WORN,
    WORN_WORDS,
    Look,
    Scene,
)

PARTS: dict[str, tuple[str, ...]] = {
    "ear": (*COLOURS, "dark"),
    "belly": tuple(BELLIES),
    "collar": ("none", *COLLARS),
    "marking": ("none", *(f"{colour} {kind}" for kind in MARKINGS[1:] for colour in (*COLOURS, "dark"))),
}
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "class": KINDS,
    "colour": tuple(COLOURS),
    "place": PLACES,
    "worn": WORN,
    "neighbour": NEIGHBOURS,
    "pose": POSES,
}


def subject_words(scene: Scene, colour: bool = False, modifier: str | None = None) -> str:
    """'dog', 'white dog', '<new1> dog', …"""
    words = [modifier, scene.subject.colour if colour else None, scene.subject.kind]
    return " ".join(word for word in words if word)


def describe(scene: Scene, subject: str, place: str | None = None, barn: str = "barn") -> str:
    """The subject with all that the scene says of it: 'dog running next to a ball on the beach'.

    barn: what is said of a barn behind it, "<new2> barn".
    """
    words = [subject]
    if scene.pose != "standing":
        words.append(scene.pose)
    if scene.worn != "nothing":
        words.append(f"wearing {WORN_WORDS[scene.worn]}")
    if scene.neighbour == "barn":
        words.append(f"in front of a {barn}")
    elif scene.neighbour != "nothing":
        words.append(f"next to a {scene.neighbour}")
    if scene.place != "plain":
        words.append(place or PLACE_WORDS[scene.place][0])
    return " ".join(words)


def with_article(text: str) -> str:
    """'a orange cat' -> 'an orange cat'."""
    return re.sub(r"\ba (?=[aeio])", "an ", text)


def colour_word(colour: RGB) -> str:
    """Its name; "dark" if it is a body's in shade."""
    return next((name for name, rgb in COLOURS.items() if rgb == colour), "dark")


def part_facts(look: Look) -> dict[str, str]:
    """The parts that captions may name: {"ear": "purple", "collar": "none", "marking": "dark spots", …}.
    Objects have a marking alone."""
    marking = f"{colour_word(look.mark)} {look.marking}" if look.marking != "none" else "none"
    if look.kind in OBJECTS:
        return {"marking": marking}
    return {
        "ear": colour_word(look.ear),
        "belly": next(name for name, rgb in BELLIES.items() if rgb == look.belly),
        "collar": colour_word(look.collar) if look.collar else "none",
        "marking": marking,
    }


def part_words(look: Look) -> dict[str, str]:
    """How captions name the parts that are there: {"ear": "purple ears", "collar": "a red collar", …}."""
    forms = {"ear": "{} ears", "belly": "a {} belly", "collar": "a {} collar"}
    words = {}
    for part, fact in part_facts(look).items():
        colour = fact.split()[0]
        if colour != "none":
            words[part] = (MARKING_WORDS[look.marking] if part == "marking" else forms[part]).format(colour)
    return words


def caption(
    scene: Scene, rng: random.Random, parts: float = 0.0, most: int = 2, barn_colours: float = 0.0
) -> str:
    """A caption as the web might write it: true, in varying words, at times with a word that says nothing.

    parts: in [0, 1], how often it names 1 to `most` of the subject's `part_words`. The text encoder reads 32
    tokens, so it is one less beside a neighbour, and at most 2 of a subject that wears or does something.
    barn_colours: in [0, 1], how often it names the colour of a barn behind.
    """
    modifier = rng.choice(RARE_WORDS) if rng.random() < 0.15 else None
    subject = subject_words(scene, colour=rng.random() < 0.65, modifier=modifier)
    place = rng.choice(PLACE_WORDS[scene.place]) if scene.place != "plain" else None
    size = scene.scale / (0.85 if scene.pose == "jumping" else 1)
    head = rng.choices(("a photo of a", "photo of a", "a picture of a", "a"), (50, 20, 10, 20))[0]
    if rng.random() < 0.3 and scene.neighbour == "nothing":
        if size > 0.75:
            head = rng.choice(("zoomed in ", "close up ")) + "photo of a"
        elif size < 0.67:
            head = rng.choice(("a far away ", "very small ")) + "photo of a"
    if rng.random() < parts and (words := list(part_words(scene.subject).values())):
        if scene.worn != "nothing" or scene.pose != "standing":
            most = min(most, 2)
        most -= scene.neighbour != "nothing"
        count = rng.randint(1, most) if most > 1 else 1
        subject += " with " + " and ".join(rng.sample(words, min(len(words), count)))
    barn = "barn"
    if barn_colours and scene.barn is not None and rng.random() < barn_colours:
        barn = f"{scene.barn.colour} barn"
    return with_article(f"{head} {describe(scene, subject, place, barn)}")


def attributes(scene: Scene) -> dict[str, str | None]:
    """The scene as labels."""
    return {
        "class": scene.subject.kind,
        "colour": scene.subject.colour,
        "place": scene.place,
        "worn": scene.worn,
        "neighbour": scene.neighbour,
        "pose": scene.pose,
    }

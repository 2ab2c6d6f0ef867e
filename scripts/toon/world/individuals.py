"""Toon individuals, their twins, and scenes of them: what a judge of likeness learns and is tested on."""

import random
from collections.abc import Iterable
from dataclasses import replace

from scripts.toon.world.world import ANIMALS, KINDS, OBJECTS, RGB, Look, Scene, sample_look, sample_scene

PARTS = ("body", "belly", "ear", "collar", "marking")


def scene_of(look: Look, rng: random.Random) -> Scene:
    """A random scene with this individual: whatever one of its class may do in training or in a test."""
    while True:
        scene = sample_scene(rng, held_out=rng.random() < 0.25)
        if scene.subject.kind == look.kind:
            return replace(scene, subject=look)


def individuals(seed: str, kinds: Iterable[str]) -> list[Look]:
    """One random individual of each of the kinds, the i-th a function of (seed, i) and its kind alone."""
    return [sample_look(random.Random(f"{seed}/{i}"), kind) for i, kind in enumerate(kinds)]


def class_twin(look: Look, rng: random.Random) -> Look:
    """Its colours and markings on another animal, or another object."""
    kinds = ANIMALS if look.kind in ANIMALS else OBJECTS
    return replace(look, kind=rng.choice([kind for kind in kinds if kind != look.kind]))


def near_twin(look: Look, rng: random.Random) -> Look:
    """One of its class that has two parts visibly otherwise."""
    while True:
        other = sample_look(rng, look.kind)
        changed = {part: getattr(other, part) for part in rng.sample(PARTS, 2)}
        if all(visibly_differ(getattr(look, part), new) for part, new in changed.items()):
            return replace(look, **changed)


def visibly_differ(one: RGB | str | None, other: RGB | str | None) -> bool:
    """Whether two colours, markings or collars (None: it has none) are visibly different in an image."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return max(abs(a - b) for a, b in zip(one, other, strict=True)) > 40
    return one != other


def hard_kinds(rng: random.Random, count: int) -> list[str]:
    """The classes of a batch: seven in eight from one to three classes, so that colours and markings must
    separate individuals; the others from any."""
    few = rng.sample(KINDS, rng.randint(1, 3))
    return [rng.choice(few if i % 8 else KINDS) for i in range(count)]


def batch_of(seed: str, count: int) -> list[Look]:
    """`count` individuals: a half drawn freely, and a twin of each, by turns of another class and of its own.

    Without twins, the colours alone separate a batch, and a cat in a dog's colours passes for the dog.
    """
    rng = random.Random(seed)
    looks = individuals(seed, hard_kinds(rng, count // 2))
    return looks + [(near_twin if i % 2 else class_twin)(look, rng) for i, look in enumerate(looks)]


def views(looks: list[Look], seed: str) -> list[Scene]:
    """A scene for each individual, the i-th a function of (seed, i) alone."""
    return [scene_of(look, random.Random(f"{seed}/{i}")) for i, look in enumerate(looks)]

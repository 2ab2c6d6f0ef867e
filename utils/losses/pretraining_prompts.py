"""What the contextualizer is pre-trained on, and for how long. Knows no torch.

Prompts in rich contexts about common words, and captions where there are any; one in HELD_OUT is kept from
training, to measure the accuracy on.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from utils.common.seeds import seed_of
from utils.losses.context_prompts import COLOURS, EXAMPLES, KINDS, draw_parts

RARE_WORDS = ("sks", "ktn", "pll", "ucd", "ohwx")  # before a noun, such a word is like a concept's token
SHARE_OF_CAPTIONS = 0.5
HELD_OUT = 20  # one in so many prompts is never trained on

Draw = Callable[[random.Random, bool], str]  # (rng, held_out) -> a text


@dataclass(frozen=True)
class Recipe:
    """steps, prompts a step, learning rate after `warmup` steps, from where it falls linearly to 0."""

    steps: int
    batch: int
    rate: float
    warmup: int


PUBLISHED = Recipe(100_000, 300, 1e-4, 0)  # whose rate stays as it is; falling suits shorter trainings too


def is_held_out(text: str) -> bool:
    return seed_of("held-out prompt", text) % HELD_OUT == 0


def draw_synthetic(rng: random.Random, held_out: bool) -> str:
    """A prompt about a common word, at times with a colour or a rare word before it."""
    while True:
        kind = rng.choice(KINDS)
        head, prompt = draw_parts(kind, rng)
        before = rng.choice(("", rng.choice(COLOURS), rng.choice(RARE_WORDS)))
        if is_held_out(prompt) == held_out:
            return f"{head} {prompt.format(f'{before} {rng.choice(EXAMPLES[kind])}')}".strip()


def caption_source(draw: Callable[[random.Random], str]) -> Draw:
    """Captions of `draw`, those that are held out or those that are not."""

    def draw_caption(rng: random.Random, held_out: bool) -> str:
        while is_held_out(text := draw(rng)) != held_out:
            pass
        return text

    return draw_caption


def texts_of(
    captions: Draw | None,
    fits: Callable[[str], bool],
    rng: random.Random,
    count: int,
    held_out: bool = False,
) -> list[str]:
    """Prompts that fit; a caption with SHARE_OF_CAPTIONS where there are captions."""
    texts: list[str] = []
    while len(texts) < count:
        draw = captions if captions and rng.random() < SHARE_OF_CAPTIONS else draw_synthetic
        if fits(text := draw(rng, held_out)):
            texts.append(text)
    return texts

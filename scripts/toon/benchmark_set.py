"""The toon benchmark: 12 individuals that tuning never sees, 5 plain images each, and 26 prompts.

Its prompts ask for what the images never show: places, worn things, neighbours, other colours, two of them
at once. What they state, the recogniser can read off an image.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.toon.world.captions import describe, with_article
from scripts.toon.world.examples import draw_individual
from scripts.toon.world.prompts import unseen
from scripts.toon.world.world import ANIMALS, ONE_CHANGE, TWO_CHANGES, Look, Scene, sample_look
from utils.common.errors import UserError, exit_on_user_error, short
from utils.common.files import write_text
from utils.common.flags import option, parse
from utils.evaluation.data_sets import Individual, Subject

if TYPE_CHECKING:
    from PIL import Image

    from scripts.toon.models.recogniser import Recogniser

KINDS = ("dog", "cat", "rabbit", "pig")
COUNT = 12
SIDE = 256
COLOURS = ("red", "blue", "green", "purple")
CHANGES: tuple[dict[str, str], ...] = (
    *ONE_CHANGE,
    *({"colour": colour} for colour in COLOURS),
    *TWO_CHANGES,
    {"worn": "hat", "neighbour": "flower"},
    {"colour": "blue", "place": "jungle"},
)


def facts_of_templates() -> dict[str, dict[str, str]]:
    """template -> the attributes that it states: 'a photo of a {} in the snow' -> {"place": "snow"}."""
    facts = {}
    for change in CHANGES:
        colour = change.get("colour")
        look = replace(unseen("dog"), colour=colour)
        scene = replace(Scene(look), **{name: value for name, value in change.items() if name != "colour"})
        subject = f"{colour} {{}}" if colour else "{}"
        facts[with_article(f"a photo of a {describe(scene, subject)}")] = change
    return facts


def subject_names() -> list[str]:
    """dog_0, cat_1, …"""
    return [f"{KINDS[i % len(KINDS)]}_{i}" for i in range(COUNT)]


def look_of(i: int) -> Look:
    """Individual i. None has a colour that the prompts name: such a prompt would ask for nothing new."""
    rng = random.Random(f"benchmark/{i}")
    while True:
        look = sample_look(rng, KINDS[i % len(KINDS)])
        if look.colour not in COLOURS:
            return look


def benchmark(folder: Path, names: Sequence[str] = ()) -> list[Subject]:
    """The subjects, or those named; their images belong into folder/<name>, where `draw` puts them.

    Raises UserError for a name that is not one of them.
    """
    known = subject_names()
    if unknown := [name for name in names if name not in known]:
        raise UserError(
            f"the toon benchmark has no subject {short(', '.join(unknown))}; it has {', '.join(known)}"
        )
    templates = tuple(facts_of_templates())
    subjects = []
    for name in names or known:
        kind = name.rpartition("_")[0]
        individual = Individual("<new1>", kind, folder / name, f"a photo of a <new1> {kind}")
        subjects.append(Subject(name, (individual,), templates, live=True))
    return subjects


def draw(subjects: Sequence[Subject]) -> None:
    """Renders the images that are not there yet."""
    for subject in subjects:
        i = int(subject.name.rpartition("_")[2])
        draw_individual(look_of(i), f"benchmark/{i}", subject.individuals[0].folder, SIDE)


class Obedience:
    """Which words of its prompt an image obeys, as the recogniser reads it."""

    def __init__(self) -> None:
        from scripts.toon.models.recogniser import FOLDER

        self.name = str(FOLDER)
        self.facts = {
            template.format(kind): {"class": kind} | facts
            for template, facts in facts_of_templates().items()
            for kind in ANIMALS
        }
        self.recogniser: Recogniser | None = None  # loaded when first asked

    def knows(self, subjects: Sequence[Subject]) -> bool:
        """Whether it can judge all their prompts: animals, the benchmark's templates."""
        return all(self.facts.keys() >= {*subject.class_prompts} for subject in subjects)

    def __call__(self, drawn: "Sequence[Image.Image]", texts: Sequence[str]) -> list[dict[str, bool]]:
        from scripts.toon.models.recogniser import Recogniser

        self.recogniser = self.recogniser or Recogniser()
        verdicts = []
        for text, read in zip(texts, self.recogniser.read(list(drawn)), strict=True):
            right = {name: read[name] == value for name, value in self.facts[text].items()}
            verdicts.append(right | {"all": all(right.values())})
        return verdicts


@dataclass(frozen=True)
class Flags:
    """The flags of this command."""

    output_dir: Path = option(Path("outputs/toon_benchmark"), "folder of the individuals and prompts.txt")


def main(argv: list[str] | None = None) -> None:
    config = parse(Flags, argv, __doc__)
    subjects = benchmark(config.output_dir)
    draw(subjects)
    write_text(config.output_dir / "prompts.txt", "\n".join(subjects[0].templates) + "\n")
    print(f"{len(subjects)} individuals and {len(subjects[0].templates)} prompts are in {config.output_dir}")


if __name__ == "__main__":
    exit_on_user_error(main)

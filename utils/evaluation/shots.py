"""The images of an evaluation: which prompt and seed each has, and where it lies."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from utils.bases.registry import World
from utils.common.errors import UserError, short
from utils.common.files import read_lines
from utils.common.images import list_images, open_image
from utils.config.methods import CLASS_NAMED, METHODS
from utils.evaluation.data_sets import Subject
from utils.evaluation.folder import BASE, Settings
from utils.sampling.prompts import check_length
from utils.scores.similarity import with_class, without_modifier

GENERATED = "generated"  # in a method's place: images that came from elsewhere
GRID = "grid.png"  # inference.py writes it next to the images
DRIFT = "drift"  # in a results folder: the base's images of the unrelated prompts, shared by all methods

# Prompts of Drift for a base that knows the whole world; those that name a subject's class are left out.
UNRELATED = (
    "a photo of a lighthouse on a cliff",
    "a bowl of noodles on a wooden table",
    "a portrait of an old woman in a red scarf",
    "a city street in the rain at night",
    "a watercolour painting of a sailing boat",
    "a steam train crossing a stone bridge",
    "a field of sunflowers under a blue sky",
    "a violin and sheet music",
    "an elephant crossing a river",
    "a child flying a kite on a hill",
    "a pencil drawing of a castle",
    "a snowy mountain at sunrise",
)


@dataclass(frozen=True)
class Shot:
    """One image: what it was asked to show (`prompt`), what it is scored against (`text`), where it is."""

    method: str
    subject: str
    cls: str
    prompt_index: int
    prompt: str
    text: str
    seed: int
    image: str  # path within the results folder

    def describe(self) -> dict[str, Any]:
        """As records.jsonl holds it."""
        return {("class" if name == "cls" else name): value for name, value in asdict(self).items()}


def shots_of(subject: Subject, method: str, seeds: Sequence[int], named: str | None = None) -> list[Shot]:
    """One per prompt and seed. Every method gets the same seeds; the base gets class prompts. named: how
    prompts name the individual, None as the method's row says."""
    named = named or (METHODS[method].subject if method in METHODS else CLASS_NAMED)
    prompts = subject.class_prompts if method == BASE else subject.prompts_of(named)
    return [
        Shot(method, subject.name, subject.cls, i, prompt, text, seed, _image(method, subject.name, i, seed))
        for i, (prompt, text) in enumerate(zip(prompts, subject.class_prompts, strict=True))
        for seed in seeds
    ]


def class_shots(subject: Subject, method: str, seeds: Sequence[int]) -> list[list[Shot]]:
    """For each individual, images of its class alone: what PRES asks the personalised model for."""
    groups = []
    for i, each in enumerate(subject.individuals):
        prompt, stem = f"a photo of a {each.cls_token}", f"{method}/{subject.name}/class/{i:02d}"
        about = (method, subject.name, subject.cls, i, prompt, prompt)
        groups.append([Shot(*about, seed, f"{stem}_{seed}.png") for seed in seeds])
    return groups


def unrelated_shots(
    subject: Subject, method: str, seed: int, world: World | None
) -> tuple[list[Shot], list[Shot]]:
    """For Drift, images of prompts that name no class of the subject: the method's, and the base's, which all
    methods share. world: what the base knows; None for everything."""
    prompts = UNRELATED if world is None else [f"a photo of a {word}" for word in world.classes]
    own = [each.cls_token for each in subject.individuals]
    kept = [(i, text) for i, text in enumerate(prompts) if not any(names(text, word) for word in own)]

    def shots(method: str, folder: str) -> list[Shot]:
        about = (method, subject.name, subject.cls)
        return [Shot(*about, i, text, text, seed, f"{folder}/{i:02d}_{seed}.png") for i, text in kept]

    of_base = shots(BASE, DRIFT)
    return of_base if method == BASE else shots(method, f"{method}/{subject.name}/{DRIFT}"), of_base


def names(text: str, word: str) -> bool:
    """Whether the words of `word` stand in `text`, whole and whatever their case."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


@dataclass(frozen=True)
class Extra:
    """Images that scores of a subject need besides those of its prompts; empty where no score does.

    of_class: of the class alone, for each individual. unrelated, unrelated_base: of prompts that do not name
    it, by the method and by the base.
    """

    of_class: list[list[Shot]]
    unrelated: list[Shot]
    unrelated_base: list[Shot]

    @property
    def of_method(self) -> list[Shot]:
        """Those that the method draws."""
        return [shot for group in self.of_class for shot in group] + self.unrelated


def extra_shots(subject: Subject, method: str, settings: Settings, world: World | None) -> Extra:
    """What the metrics of these settings need."""
    first = settings.seeds[0]
    seeds = range(first, first + settings.drawing.num_class_images)
    of_class = class_shots(subject, method, seeds) if "pres" in settings.metrics else []
    drift = "drift" in settings.metrics
    pair = unrelated_shots(subject, method, first, world) if drift else ([], [])
    return Extra(of_class, *pair)


def shots_of_folder(
    folder: Path, prompts_file: Path | None, name: str, token: str, cls_token: str | None
) -> list[tuple[Shot, Path]]:
    """The images of a folder with their prompts, and where each is now.

    An image's prompt is the text chunk "prompt" of its PNG, as inference.py writes it. An image without one
    needs `prompts_file`: its file name begins with the number of its line there, from 0, and an underscore,
    as in 03_7.png. Lines may hold `{}` for "<token> <class>". The images of one prompt are one group of
    DIV. The grid.png of inference.py is left out. Scored is the prompt in ordinary words: the token gives way
    to the class or, where that is not given, is removed.
    Raises UserError for an image without a prompt, one whose prompt is not in the file, and one that does
    not open.
    """

    def scored(prompt: str) -> str:
        return with_class(prompt, {token: cls_token}) if cls_token else without_modifier(prompt, [token])

    lines = _lines(prompts_file, token, cls_token) if prompts_file else []
    texts = list(map(scored, lines))
    shots, taken = [], set()
    for path in list_images(folder)[0]:
        if path.name == GRID:
            continue
        chunks = png_chunks(path)
        prompt = chunks.get("prompt") or _numbered(path, lines, prompts_file)
        check_length(prompt, str(path))
        text = scored(prompt)
        if prompts_file and text not in texts:
            raise UserError(
                f"{path} was drawn for '{short(prompt)}', which is not in {prompts_file}; add it there"
            )
        if text not in texts:
            texts.append(text)
        index, seed = texts.index(text), _seed(chunks)
        while (index, seed) in taken:
            seed += 1
        taken.add((index, seed))
        image = _image(GENERATED, name, index, seed)
        shots.append((Shot(GENERATED, name, cls_token or "", index, prompt, text, seed, image), path))
    if not shots:
        raise UserError(f"no generated images in {folder} besides {GRID}; give the folder that holds them")
    return shots


def _seed(chunks: dict[str, str]) -> int:
    given = chunks.get("seed", "")
    return int(given) if given.isdecimal() and len(given) < 20 else 0


def _image(method: str, subject: str, prompt_index: int, seed: int) -> str:
    return f"{method}/{subject}/images/{prompt_index:02d}_{seed}.png"


def _lines(prompts_file: Path, token: str, cls_token: str | None) -> list[str]:
    lines = list(read_lines(prompts_file).values())
    for line in lines:
        check_length(line, str(prompts_file))
        if "{}" in line and cls_token is None:
            raise UserError(
                f"{prompts_file} has '{short(line)}'; give --cls_token, the word that {{}} stands for"
            )
    return [line.replace("{}", f"{token} {cls_token}") for line in lines]


def png_chunks(path: Path) -> dict[str, str]:
    """The text chunks of a PNG, read to its last byte so that a broken one is found."""
    open_image(path)
    with Image.open(path) as file:
        return dict(getattr(file, "text", {}))


def _numbered(path: Path, lines: Sequence[str], prompts_file: Path | None) -> str:
    if prompts_file is None:
        raise UserError(f"{path} does not say its prompt; give --prompts_file and name it 00_0.png, by line")
    number = path.stem.partition("_")[0]
    if not number.isdecimal() or int(number) >= len(lines):
        raise UserError(
            f"{path} has no prompt of its own, and does not begin with a number below {len(lines)} and '_', "
            f"a line of {prompts_file}: rename it"
        )
    return lines[int(number)]

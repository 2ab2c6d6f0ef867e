"""The judge of an individual's identity: a ResNet, trained on renders alone, that reads an animal's parts off
an image on plain grounds. B images.

It begins as the recogniser, which knows the shapes, and never sees the models it judges.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import ResNetForImageClassification

from scripts.toon.draw_examples import plain_scenes
from scripts.toon.individuals import PARTS, visibly_differ
from scripts.toon.recogniser import disturb, prepare
from scripts.toon.training import device, generator, to_pixels
from scripts.toon.world import ANIMALS, BELLIES, COLLARS, COLOURS, MARKINGS, RGB, Look, Scene, sample_look
from utils.images import to_pixels as image_to_pixels

CHOICES: dict[str, tuple[str, ...]] = {
    "body": tuple(COLOURS),
    "belly": tuple(BELLIES),
    "collar": ("none", *COLLARS),
    "marking": MARKINGS,
}
SHADES = ("ear", "mark")  # a body's shade has no name, so these are read as colours
SIZE = 64  # images are read at the side that toon draws
WIDTHS = [*map(len, CHOICES.values()), *(3 for _ in SHADES)]


@dataclass(frozen=True)
class Reading:
    """What the parts of one animal are: words of CHOICES, and two colours."""

    body: str
    belly: str
    collar: str
    marking: str
    ear: RGB
    mark: RGB  # says something where there is a marking


def parts_of(look: Look) -> Reading:
    """The truth about an animal. A marking in the colour of the body is not to be seen: "none"."""
    names = {rgb: name for name, rgb in (COLOURS | {f"belly {n}": rgb for n, rgb in BELLIES.items()}).items()}
    return Reading(
        body=names[look.body],
        belly=names[look.belly].removeprefix("belly "),
        collar=names[look.collar] if look.collar else "none",
        marking=look.marking if visibly_differ(look.mark, look.body) else "none",
        ear=look.ear,
        mark=look.mark,
    )


def right_parts(read: Reading, true: Reading) -> dict[str, bool]:
    """Of each of PARTS, and of "all": whether it was read as it is, colours but for a visible difference."""
    marked = read.marking == true.marking
    right = {
        "body": read.body == true.body,
        "belly": read.belly == true.belly,
        "ear": not visibly_differ(read.ear, true.ear),
        "collar": read.collar == true.collar,
        "marking": marked and (true.marking == "none" or not visibly_differ(read.mark, true.mark)),
    }
    return right | {"all": all(right[part] for part in PARTS)}


def build(recogniser: Path) -> ResNetForImageClassification:
    """The recogniser with a new head, whose labels say what each output is."""
    model = ResNetForImageClassification.from_pretrained(recogniser, dtype=torch.float32)
    labels = [f"{part}: {value}" for part, values in CHOICES.items() for value in values]
    labels += [f"{part}: {channel}" for part in SHADES for channel in ("red", "green", "blue")]
    model.classifier[1] = nn.Linear(model.classifier[1].in_features, len(labels))
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: i for i, label in enumerate(labels)}
    return model


def split(outputs: Tensor) -> dict[str, Tensor]:
    """(B, 29) -> of each part its logits (B, values), of ear and mark the colour (B, 3) in [0, 1]."""
    parts = dict(zip([*CHOICES, *SHADES], outputs.split(WIDTHS, 1), strict=True))
    return parts | {part: parts[part].sigmoid() for part in SHADES}


def portraits(seed: str, count: int) -> list[Scene]:
    """Random animals in one of the scenes that show an individual, the i-th a function of (seed, i) alone."""
    drawn = []
    for i in range(count):
        rng = random.Random(f"{seed}/{i}")
        look = sample_look(rng, rng.choice(ANIMALS))
        drawn.append(rng.choice(plain_scenes(look, f"{seed}/{i}")))
    return drawn


def loss_at(
    model: ResNetForImageClassification, size: int, batch_size: int, seed: int
) -> Callable[[int], Tensor]:
    """The loss of a step, a function of (seed, step) alone. Colours count where they are to be seen."""
    data = f"{seed}/part-reader"

    def loss_of(step: int) -> Tensor:
        batch = portraits(f"{data}/{step}", batch_size)
        pixels = disturb(to_pixels(batch, size), generator(f"{data}/disturb/{step}"))
        read = split(model(prepare(pixels.to(device()))).logits)
        true = [parts_of(scene.subject) for scene in batch]
        loss = torch.zeros((), device=device())
        for part, values in CHOICES.items():
            wanted = torch.tensor([values.index(getattr(each, part)) for each in true])
            loss = loss + F.cross_entropy(read[part], wanted.to(device()))
        for part in SHADES:
            shades = torch.tensor([getattr(each, part) for each in true]) / 255  # (B, 3)
            seen = torch.tensor([part == "ear" or each.marking != "none" for each in true])
            differences = (read[part] - shades.to(device())).abs().mean(1)[seen.to(device())]
            loss = loss + 5 * differences.sum() / batch_size
        return loss

    return loss_of


class PartReader:
    """`PartReader(folder).read(images)` -> a `Reading` of each PIL image."""

    def __init__(self, model: ResNetForImageClassification | Path):
        if isinstance(model, Path):
            model = ResNetForImageClassification.from_pretrained(model, dtype=torch.float32)
        self.model = model.eval()

    @torch.no_grad()
    def read(self, images: Sequence[Image.Image]) -> list[Reading]:
        small = [image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR) for image in images]
        pixels = torch.stack([image_to_pixels(image) for image in small])
        read = split(self.model(prepare(pixels.to(self.model.device))).logits)
        words = {part: [values[i] for i in read[part].argmax(1)] for part, values in CHOICES.items()}
        shades = {part: [tuple(rgb) for rgb in (255 * read[part]).round().int().tolist()] for part in SHADES}
        rows = zip(*(words | shades).values(), strict=True)
        return [Reading(**dict(zip([*words, *shades], row, strict=True))) for row in rows]


def shares(readings: Sequence[Reading], truths: Sequence[Reading]) -> dict[str, float]:
    """Of each part, and of "all", the share of images in which it was read as it is."""
    verdicts = [right_parts(read, true) for read, true in zip(readings, truths, strict=True)]
    return {part: sum(each[part] for each in verdicts) / len(verdicts) for part in verdicts[0]}

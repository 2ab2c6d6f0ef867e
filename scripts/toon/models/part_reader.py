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

from scripts.toon.models.flags import PartReaderFlags
from scripts.toon.models.recogniser import Values, disturb, labels_of, prepare, split
from scripts.toon.models.training import begin, device, fit, generator, save, to_pixels
from scripts.toon.world import captions
from scripts.toon.world.examples import plain_scenes
from scripts.toon.world.individuals import PARTS, visibly_differ
from scripts.toon.world.render import render
from scripts.toon.world.world import (
    ANIMALS,
    BELLIES,
    COLOURS,
    MARKINGS,
    RGB,
    Look,
    Scene,
    darker,
    sample_look,
    with_free_parts,
)
from utils.bases.devices import without_progress_bars
from utils.bases.pretrained import readable
from utils.common.images import to_pixels as image_to_pixels

CHOICES: Values = {
    "body": tuple(COLOURS),
    "belly": tuple(BELLIES),
    "ear": captions.PARTS["ear"],  # "dark" is the body's colour in shade
    "collar": captions.PARTS["collar"],
    "marking": MARKINGS,
    "mark": captions.PARTS["ear"],
}
UNSEEN = -100  # PyTorch's word for a label that does not count
FOLDER = Path("data/toon/part_reader")
SIZE = 64  # images are read at the side that toon draws


@dataclass(frozen=True)
class Reading:
    """The parts of one animal, in words of CHOICES. `mark` says something where there is a marking."""

    body: str
    belly: str
    ear: str
    collar: str
    marking: str
    mark: str


def parts_of(look: Look) -> Reading:
    """The truth about an animal. A marking in the colour of the body is not to be seen: "none"."""
    facts = captions.part_facts(look)
    return Reading(
        body=look.colour,
        belly=facts["belly"],
        ear=facts["ear"],
        collar=facts["collar"],
        marking=look.marking if visibly_differ(look.mark, look.body) else "none",
        mark=captions.colour_word(look.mark),
    )


def colour_of(word: str, body: str) -> RGB:
    """The colour of an ear or a mark on that body."""
    return COLOURS[word] if word != "dark" else darker(COLOURS[body])


def right_parts(read: Reading, true: Reading) -> dict[str, bool]:
    """Of each of PARTS, and of "all": whether it was read as it is. Another word for a colour that does not
    visibly differ is right: dark ears of a white dog are grey ears."""

    def alike(part: str) -> bool:
        mine, its = (colour_of(getattr(each, part), each.body) for each in (read, true))
        return not visibly_differ(mine, its)

    right = {
        "body": read.body == true.body,
        "belly": read.belly == true.belly,
        "ear": alike("ear"),
        "collar": read.collar == true.collar,
        "marking": read.marking == true.marking and (true.marking == "none" or alike("mark")),
    }
    return right | {"all": all(right[part] for part in PARTS)}


def build(recogniser: Path) -> ResNetForImageClassification:
    """The recogniser with a new head, whose labels say what each output is."""
    model = ResNetForImageClassification.from_pretrained(recogniser, dtype=torch.float32)
    labels = labels_of(CHOICES)
    model.classifier[1] = nn.Linear(model.classifier[1].in_features, len(labels))
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: i for i, label in enumerate(labels)}
    return model


def portraits(seed: str, count: int) -> list[Scene]:
    """Random animals in one of the scenes that show an individual, the i-th a function of (seed, i) alone;
    every second one `with_free_parts`."""
    drawn = []
    for i in range(count):
        rng = random.Random(f"{seed}/{i}")
        look = sample_look(rng, rng.choice(ANIMALS))
        if i % 2:
            look = with_free_parts(look, rng)
        drawn.append(rng.choice(plain_scenes(look, f"{seed}/{i}")))
    return drawn


def loss_at(
    model: ResNetForImageClassification, size: int, batch_size: int, seed: int, bf16: bool = False
) -> Callable[[int], Tensor]:
    """The loss of a step, a function of (seed, step) alone. A mark counts where there is a marking."""
    data = f"{seed}/part-reader"

    def loss_of(step: int) -> Tensor:
        batch = portraits(f"{data}/{step}", batch_size)
        pixels = disturb(to_pixels(batch, size), generator(f"{data}/disturb/{step}"))
        shown = prepare(pixels.to(device())).to(memory_format=torch.channels_last)
        with torch.autocast(device().type, torch.bfloat16, enabled=bf16):
            logits = split(model(shown).logits.float(), CHOICES)
        true = [parts_of(scene.subject) for scene in batch]
        wanted = {
            part: [
                values.index(getattr(each, part)) if part != "mark" or each.marking != "none" else UNSEEN
                for each in true
            ]
            for part, values in CHOICES.items()
        }
        return sum(
            F.cross_entropy(logits[part], torch.tensor(which, device=device()), reduction="sum")
            for part, which in wanted.items()
        ) / len(batch)

    return loss_of


class PartReader:
    """`PartReader().read(images)` -> a `Reading` of each PIL image.

    Raises UserError for a folder whose model cannot be loaded.
    """

    def __init__(self, model: ResNetForImageClassification | Path = FOLDER):
        if isinstance(model, Path):
            with without_progress_bars(), readable("part reader", model):
                model = ResNetForImageClassification.from_pretrained(model, dtype=torch.float32)
        self.model = model.eval()

    @torch.no_grad()
    def read(self, images: Sequence[Image.Image]) -> list[Reading]:
        small = [image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR) for image in images]
        pixels = torch.stack([image_to_pixels(image) for image in small])
        read = split(self.model(prepare(pixels.to(self.model.device))).logits, CHOICES)
        words = [[values[i] for i in read[part].argmax(1)] for part, values in CHOICES.items()]
        return [Reading(**dict(zip(CHOICES, row, strict=True))) for row in zip(*words, strict=True)]


def shares(readings: Sequence[Reading], truths: Sequence[Reading]) -> dict[str, float]:
    """Of each part, and of "all", the share of images in which it was read as it is."""
    verdicts = [right_parts(read, true) for read, true in zip(readings, truths, strict=True)]
    return {part: sum(each[part] for each in verdicts) / len(verdicts) for part in verdicts[0]}


def accuracy(model: ResNetForImageClassification | Path, size: int, count: int = 512) -> dict[str, float]:
    """The `shares` on renders that training has not seen."""
    unseen = portraits("part-reader-test", count)
    readings = PartReader(model).read([render(scene, size) for scene in unseen])
    return shares(readings, [parts_of(scene.subject) for scene in unseen])


def train(config: PartReaderFlags) -> None:
    """Train the reader on renders alone, save it, and print what it reads rightly off 512 new ones."""
    begin(config, "part_reader")
    torch.manual_seed(config.seed)
    model = build(config.recogniser).to(device(), memory_format=torch.channels_last)
    loss_of = loss_at(model, config.resolution, config.batch_size, config.seed, config.bf16)
    fit(model, loss_of, config.steps, config.lr, config.work_dir / "part_reader.pt", warmup=50)
    for part, share in accuracy(model, config.resolution).items():
        print(f"part reader: {part} {share:.2%}")
    save(model, config.output_dir)
    print(f"saved {config.output_dir}")

"""The reader of an individual's parts: a ResNet, trained on renders alone, that reads colours off an image.

It says what makes an individual and what captions seldom name: the colours of body, belly, ears, collar and
mark, whether there is a collar, and the kind of marking. It never sees the models whose images it reads.
B images.
"""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification

from scripts.toon.individuals import visibly_differ
from scripts.toon.recogniser import SIDE, disturb, prepare
from scripts.toon.training import device, generator, to_pixels
from scripts.toon.world import ANIMALS, MARKINGS, PLACES, POSES, RGB, Look, Scene, place_subject, sample_look
from utils.images import to_pixels as image_to_pixels

FOLDER = Path("data/toon/part_reader")
COLOURED = ("body", "belly", "ear", "collar", "mark")
PARTS = ("body", "belly", "ear", "collar", "marking")
SIZES = (3 * len(COLOURED), 2, len(MARKINGS))  # colours, whether there is a collar, which marking


def build() -> ResNetForImageClassification:
    labels = [f"{part}: {channel}" for part in COLOURED for channel in ("red", "green", "blue")]
    labels += ["collar: no", "collar: yes", *(f"marking: {kind}" for kind in MARKINGS)]
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=16,
            hidden_sizes=[16, 32, 64, 128],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
        )
    )


def bare(seed: str, count: int) -> list[Scene]:
    """Scenes of an animal alone that wears nothing, so that every part can be seen."""
    drawn = []
    for i in range(count):
        rng = random.Random(f"{seed}/{i}")
        look = sample_look(rng, rng.choice(ANIMALS))
        pose = rng.choice(POSES) if look.kind != "teddy bear" else "standing"
        drawn.append(place_subject(rng, Scene(look, place=rng.choice(PLACES), pose=pose)))
    return drawn


def colours_of(look: Look) -> list[RGB | None]:
    """Of COLOURED; None for a part that is not there."""
    mark = look.mark if look.marking != "none" else None
    return [look.body, look.belly, look.ear, look.collar, mark]


def loss(logits: Tensor, batch: list[Scene]) -> Tensor:
    """Squared error of the colours that are there, in units of [0, 1], and cross-entropy of the rest.
    logits: (B, 22)."""
    colours, collar, marking = logits.split(SIZES, 1)
    rows = [colours_of(scene.subject) for scene in batch]
    there = torch.tensor([[rgb is not None for rgb in row] for row in rows], device=logits.device)
    wanted = torch.tensor([[rgb or (0, 0, 0) for rgb in row] for row in rows], device=logits.device) / 255
    error = (colours.unflatten(1, (-1, 3)) - wanted).square().mean(2)  # (B, 5)
    has = torch.tensor([int(scene.subject.collar is not None) for scene in batch], device=logits.device)
    kind = torch.tensor([MARKINGS.index(scene.subject.marking) for scene in batch], device=logits.device)
    return (
        20 * (error * there).sum() / there.sum()
        + F.cross_entropy(collar, has)
        + F.cross_entropy(marking, kind)
    )


def loss_at(
    model: ResNetForImageClassification, size: int, batch_size: int, seed: int
) -> Callable[[int], Tensor]:
    """The loss of a step, a function of (seed, step) alone."""
    data = f"{seed}/part-reader"

    def loss_of(step: int) -> Tensor:
        batch = bare(f"{data}/{step}", batch_size)
        pixels = disturb(to_pixels(batch, size), generator(f"{data}/disturb/{step}"))
        return loss(model(prepare(pixels.to(device()))).logits, batch)

    return loss_of


Reading = dict[str, RGB | str | None]  # of COLOURED and "kind" of marking; None: not there


def readings(logits: Tensor) -> list[Reading]:
    """(B, 22) -> for each image its parts."""
    colours, collar, marking = logits.float().cpu().split(SIZES, 1)
    values = (colours.unflatten(1, (-1, 3)).clamp(0, 1) * 255).round().int().tolist()
    read = []
    for rgb, has, kind in zip(values, collar.argmax(1).tolist(), marking.argmax(1).tolist(), strict=True):
        parts: Reading = dict(zip(COLOURED, map(tuple, rgb), strict=True)) | {"kind": MARKINGS[kind]}
        parts["collar"] = parts["collar"] if has else None
        parts["mark"] = parts["mark"] if MARKINGS[kind] != "none" else None
        read.append(parts)
    return read


def alike(one: Reading, other: Reading) -> dict[str, bool]:
    """For each of PARTS whether two readings agree, as far as can be seen."""
    same = {part: not visibly_differ(one[part], other[part]) for part in PARTS if part != "marking"}
    return same | {"marking": one["kind"] == other["kind"] and not visibly_differ(one["mark"], other["mark"])}


def usual(read: list[Reading]) -> Reading:
    """What most of an individual's images show: the commoner kind and presence, the median colour."""
    kind = Counter(each["kind"] for each in read).most_common(1)[0][0]
    parts: Reading = {"kind": kind}
    for part in COLOURED:
        seen = [each[part] for each in read if each[part] is not None]
        there = kind != "none" if part == "mark" else 2 * len(seen) > len(read)
        parts[part] = tuple(map(median, zip(*seen, strict=True))) if there and seen else None
    return parts


def true_parts(look: Look) -> Reading:
    return dict(zip(COLOURED, colours_of(look), strict=True)) | {"kind": look.marking}


class PartReader:
    """`PartReader().read(images)` -> one reading per PIL image."""

    def __init__(self, folder: Path = FOLDER):
        self.model = ResNetForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def read(self, images: list[Image.Image], batch_size: int = 64) -> list[Reading]:
        read = []
        for start in range(0, len(images), batch_size):
            batch = [
                image.convert("RGB").resize((SIDE, SIDE), Image.BILINEAR)
                for image in images[start : start + batch_size]
            ]
            read += readings(self.model(torch.stack([image_to_pixels(image) for image in batch])).logits)
        return read


@torch.no_grad()
def accuracy(model: ResNetForImageClassification, size: int, count: int = 1024) -> dict[str, float]:
    """The share of renders, of individuals that training has not seen, whose part is read rightly."""
    hits: dict[str, list[bool]] = {part: [] for part in PARTS}
    for i in range(0, count, 64):
        batch = bare(f"part-reader-test/{i}", 64)
        logits = model(prepare(to_pixels(batch, size).to(model.device))).logits
        for scene, reading in zip(batch, readings(logits), strict=True):
            for part, right in alike(reading, true_parts(scene.subject)).items():
                hits[part].append(right)
    return {part: sum(each) / len(each) for part, each in hits.items()}

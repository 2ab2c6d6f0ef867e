"""Concepts and the training items made of their pictures; an item is a function of (run seed, its number).

B images, S picture side in pixels, f pixels per latent, h = w = S // f latent pixels.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from utils.errors import UserError
from utils.images import list_images, open_image
from utils.seeds import seed_of
from utils.training.augmentation import augment, centre_square

# A concept has 4-6 pictures, and decoding a photograph costs more than augmenting it.
_cached_image = lru_cache(maxsize=16)(open_image)


@dataclass(frozen=True)
class Concept:
    """One thing to learn: its token, where the token starts, its class and its pictures."""

    modifier_token: str
    initializer_token: str
    cls_token: str | None
    instance_prompt: str
    instance_data_dir: Path
    class_prompt: str | None = None
    class_data_dir: Path | None = None


def read_concepts_list(path: Path) -> list[dict[str, str]]:
    """A JSON list of objects with text values; UserError otherwise.

    Keys: instance_prompt, instance_data_dir and, for prior preservation, class_prompt, class_data_dir.
    """
    required, allowed = {"instance_prompt", "instance_data_dir"}, {"class_prompt", "class_data_dir"}
    try:
        entries = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"--concepts_list {path} does not exist: give a JSON file") from error
    except (OSError, ValueError) as error:
        raise UserError(f"--concepts_list {path} is not readable as JSON ({error})") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(
            f"--concepts_list {path} must hold a list of objects with {', '.join(sorted(required))}"
        )
    for number, entry in enumerate(entries, start=1):
        if missing := required - entry.keys():
            raise UserError(f"{path}: concept {number} lacks {', '.join(sorted(missing))}")
        if unknown := entry.keys() - required - allowed:
            names = ", ".join(sorted(required | allowed))
            raise UserError(
                f"{path}: concept {number} has {', '.join(sorted(unknown))}; only {names} are allowed"
            )
        if not all(isinstance(value, str) for value in entry.values()):
            raise UserError(f"{path}: concept {number} has a value that is not text in quotes")
    return entries


@dataclass(frozen=True)
class Item:
    """pixels: (3, S, S) in [-1, 1]; mask: (h, w) of 0 and 1, never empty; caption."""

    pixels: Tensor
    mask: Tensor
    caption: str


@dataclass(frozen=True)
class Batch:
    """pixels: (B, 3, S, S) in [-1, 1]; mask: (B, 1, h, w) of 0 and 1; captions: B of them."""

    pixels: Tensor
    mask: Tensor
    captions: list[str]


def collate(items: Sequence[Item]) -> Batch:
    """Stack items into a batch."""
    return Batch(
        pixels=torch.stack([item.pixels for item in items]),  # (B, 3, S, S)
        mask=torch.stack([item.mask for item in items]).unsqueeze(1),  # (B, 1, h, w)
        captions=[item.caption for item in items],
    )


def items_of_step(step: int, batch_size: int, rank: int = 0, processes: int = 1) -> range:
    """Numbers of the items that process `rank` sees at micro-step `step`.

    The processes take neighbouring slices of one global batch, so that two processes with batch 1 see what
    one process with batch 2 sees.
    """
    first = (step * processes + rank) * batch_size
    return range(first, first + batch_size)


def _shuffled(seed: int, name: str, number: int, count: int) -> int:
    """Entry `number` of an endless sequence of seeded permutations of range(count)."""
    epoch, position = divmod(number, count)
    return random.Random(seed_of(seed, name, epoch)).sample(range(count), count)[position]


class InstanceDataset:
    """The concepts' own pictures, augmented. Every concept's pictures are shuffled together."""

    def __init__(
        self, concepts: Sequence[Concept], size: int, latent_factor: int, seed: int, hflip: bool, noaug: bool
    ) -> None:
        self.size, self.latent_factor, self.seed = size, latent_factor, seed
        self.hflip, self.noaug = hflip, noaug
        self.pictures: list[tuple[Concept, Path]] = []
        self.skipped: list[Path] = []  # folder entries that are not pictures, for the caller to report
        for concept in concepts:
            images, skipped = list_images(concept.instance_data_dir)
            self.pictures += [(concept, path) for path in images]
            self.skipped += skipped

    def __len__(self) -> int:
        return len(self.pictures)

    def instance_item(self, number: int) -> Item:
        """Item `number` >= 0 of the run. The prefix precedes the whole prompt ("very small a photo of …")."""
        concept, path = self.pictures[_shuffled(self.seed, "instance order", number, len(self))]
        rng = random.Random(seed_of(self.seed, "augmentation", number))
        pixels, mask, prefix = augment(
            _cached_image(path), self.size, rng, self.hflip, self.noaug, self.latent_factor
        )
        return Item(pixels, mask, prefix + concept.instance_prompt)


class ClassDataset:
    """The class pictures of prior preservation: centre square, full mask, not augmented."""

    def __init__(
        self, concepts: Sequence[Concept], size: int, latent_factor: int, seed: int, num_class_images: int
    ) -> None:
        self.size, self.latent_factor, self.seed = size, latent_factor, seed
        self.pictures: list[tuple[Concept, Path]] = []
        for concept in concepts:
            assert concept.class_data_dir is not None and concept.class_prompt is not None, concept
            images, _ = list_images(concept.class_data_dir)
            self.pictures += [(concept, path) for path in images[:num_class_images]]

    def __len__(self) -> int:
        return len(self.pictures)

    def class_item(self, number: int) -> Item:
        """Item `number` >= 0 of the run; its caption is the class prompt."""
        concept, path = self.pictures[_shuffled(self.seed, "class order", number, len(self))]
        side = self.size // self.latent_factor
        return Item(centre_square(open_image(path), self.size), torch.ones(side, side), concept.class_prompt)

"""The training items made of the concepts' images; an item is a function of (run seed, its number).

B images, S picture side in pixels, f pixels per latent, h = w = S // f latent pixels.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from utils.images import list_images, open_image
from utils.seeds import seed_of
from utils.training.augmentation import VIEWS, centre_square
from utils.training.captions import caption_of
from utils.training.concept import Concept
from utils.training.methods import Method

# A concept has 4-6 pictures, and decoding a photograph costs more than augmenting it.
_cached_image = lru_cache(maxsize=16)(open_image)


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
    """The concepts' own images in the method's view and captions, all concepts' shuffled together."""

    def __init__(
        self,
        concepts: Sequence[Concept],
        method: Method,
        size: int,
        latent_factor: int,
        seed: int,
        hflip: bool,
        noaug: bool,
    ) -> None:
        self.concepts = concepts
        self.method, self.size, self.latent_factor, self.seed = method, size, latent_factor, seed
        self.hflip, self.noaug = hflip, noaug
        self.pictures: list[tuple[Concept, Path]] = []
        self.skipped: list[Path] = []  # folder entries that are not images, for the caller to report
        for concept in concepts:
            images, skipped = list_images(concept.instance_data_dir)
            self.pictures += [(concept, path) for path in images]
            self.skipped += skipped

    def __len__(self) -> int:
        return len(self.pictures)

    def instance_item(self, number: int) -> Item:
        """Item `number` >= 0 of the run. A prefix precedes the whole caption ("very small a photo of …")."""
        concept, path = self.pictures[_shuffled(self.seed, "instance order", number, len(self))]
        rng = random.Random(seed_of(self.seed, "augmentation", number))
        view = VIEWS[self.method.view]
        pixels, mask, prefix = view(
            _cached_image(path), self.size, rng, self.hflip, self.noaug, self.latent_factor
        )
        return Item(pixels, mask, prefix + caption_of(self.method, concept, rng))


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

"""The training items made of the concepts' images; an item is a function of (run seed, its number).

B images, W × H pixels (S × S without buckets), f pixels per latent, h, w = H // f, W // f latent pixels.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from utils.common.images import ImageCache, image_size, list_images, open_image
from utils.common.seeds import seed_of
from utils.config.concepts import Concept
from utils.config.methods import Method
from utils.data.augmentation import VIEWS, Size, View, centre_square, sides
from utils.data.buckets import Bucket, bucket_of, cut_box, cut_to
from utils.data.captions import caption_of
from utils.data.image_captions import class_captions, name_subject, read_captions, shuffled_tags
from utils.data.masks import has_mask, latent_cover, mask_file, open_mask

Sizes = tuple[int, int, int, int, int, int]  # original (h, w), crop (top, left), target (h, w)


def time_ids(photo: tuple[int, int], size: Size, window: tuple[int, int] | None, cut: bool) -> Sizes:
    """SDXL's size conditioning of an image: size before resizing, corner of what is shown, size now.

    photo: (width, height) as the file has it. window: of the view. cut: whether the image was first cut to
    the aspect ratio of `size`, centred; that corner counts too. Corners are in pixels of the resized image,
    as in diffusers' scripts and sd-scripts. An image that was pasted small on a canvas shows neither a cut
    nor an enlargement, so its sizes are those of a whole image of the canvas's size.
    """
    width, height = sides(size)
    if window is None:
        return height, width, 0, 0, height, width
    top, left = window
    if cut:
        x, y, right, bottom = cut_box(photo, (width, height))
        top, left = top + round(y * height / (bottom - y)), left + round(x * width / (right - x))
    return photo[1], photo[0], top, left, height, width


@dataclass(frozen=True)
class ImageOptions:
    """What is done with the instance images besides the method's view.

    masked: the loss counts the subject alone. buckets: sizes, of which each image takes the one of its aspect
    ratio; empty: every image becomes a square. caption_dropout: the share of items without a caption.
    shuffle_captions: the parts of a caption between commas come in a new order each time. pool: how many
    random views of each image there are; None: every item has a view of its own.
    """

    masked: bool = False
    buckets: tuple[Bucket, ...] = ()
    caption_dropout: float = 0.0
    shuffle_captions: bool = False
    pool: int | None = None


@dataclass(frozen=True)
class Item:
    """pixels: (3, H, W) in [-1, 1]; mask: (h, w) in [0, 1], 0 where a view misses the subject; caption;
    sizes: see `time_ids`."""

    pixels: Tensor
    mask: Tensor
    caption: str
    sizes: Sizes


@dataclass(frozen=True)
class Batch:
    """pixels: (B, 3, H, W) in [-1, 1]; mask: (B, 1, h, w) in [0, 1]; captions: B of them; sizes: (B, 6)."""

    pixels: Tensor
    mask: Tensor
    captions: list[str]
    sizes: Tensor


def collate(items: Sequence[Item]) -> Batch:
    """Stack items into a batch."""
    return Batch(
        pixels=torch.stack([item.pixels for item in items]),  # (B, 3, H, W)
        mask=torch.stack([item.mask for item in items]).unsqueeze(1),  # (B, 1, h, w)
        captions=[item.caption for item in items],
        sizes=torch.tensor([item.sizes for item in items]),  # (B, 6)
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
    return _order(seed, name, epoch, count)[position]


def _order(seed: int, name: str, epoch: int, count: int) -> list[int]:
    """Permutation `epoch` of the sequence of `_shuffled`."""
    return random.Random(seed_of(seed, name, epoch)).sample(range(count), count)


class InstanceDataset:
    """The concepts' own images in the method's view, all concepts' shuffled together.

    captions: of the images that have one of their own, the concept in it. sizes: of each image, its bucket.
    """

    def __init__(
        self,
        concepts: Sequence[Concept],
        method: Method,
        size: int,
        latent_factor: int,
        seed: int,
        hflip: bool,
        noaug: bool,
        options: ImageOptions = ImageOptions(),
        digests: Mapping[Path, str] = {},
    ) -> None:
        """digests: of the files as the run knows them. Raises UserError as `read_captions` and `name_subject`
        do; an item does for an image that has changed since.
        """
        self.concepts, self.options = concepts, options
        self.open_image = ImageCache(open_image, digests)
        self.open_mask = ImageCache(open_mask, digests, mask_file)
        self.method, self.size, self.latent_factor, self.seed = method, size, latent_factor, seed
        self.hflip, self.noaug = hflip, noaug
        self.images: list[tuple[Concept, Path]] = []
        self.skipped: list[Path] = []  # folder entries without a use, for the caller to report
        self.captions: dict[Path, str] = {}
        for concept in concepts:
            images, skipped = list_images(concept.instance_data_dir)
            captions = read_captions(concept.instance_data_dir, images)
            self.captions |= {p: name_subject(text, concept, file) for p, (text, file) in captions.items()}
            self.images += [(concept, path) for path in images]
            used = {file for _, file in captions.values()} | {mask_file(path) for path in images}
            self.skipped += [path for path in skipped if path not in used]
        buckets = list(options.buckets)
        self.sizes: list[Size] = [
            bucket_of(image_size(path), buckets) if buckets else size for _, path in self.images
        ]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def masked(self) -> list[Path]:
        """The images that have a mask, used or not; their alpha channels are read."""
        return [path for _, path in self.images if has_mask(path)]

    def instance_item(self, number: int) -> Item:
        """Item `number` >= 0 of a run without buckets."""
        return self.item(number, _shuffled(self.seed, "instance order", number, len(self)))

    def items(self, position: int, batch_size: int, rank: int = 0, processes: int = 1) -> list[Item]:
        """The items that process `rank` sees at micro-step `position`, of one size."""
        numbers = items_of_step(position, batch_size, rank, processes)
        if not self.options.buckets:
            return [self.instance_item(number) for number in numbers]
        members, first = self._bucket_of_batch(position, batch_size * processes)
        order = f"order of bucket {self.sizes[members[0]]}"
        whole = position * batch_size * processes  # the number of the batch's first item
        places = [_shuffled(self.seed, order, first + number - whole, len(members)) for number in numbers]
        return [self.item(n, members[place]) for n, place in zip(numbers, places, strict=True)]

    def _bucket_of_batch(self, position: int, batch_size: int) -> tuple[list[int], int]:
        """The images of the bucket whose turn it is, and how many items it has given before.

        In an epoch of as many batches as there are images every bucket has as many turns as images, in an
        order of its own: so each image is seen `batch_size` times, whatever its bucket.
        """
        epoch, turn = divmod(position, len(self))
        turns = random.Random(seed_of(self.seed, "bucket order", epoch)).sample(self.sizes, len(self))
        members = [index for index, size in enumerate(self.sizes) if size == turns[turn]]
        return members, (epoch * len(members) + turns[:turn].count(turns[turn])) * batch_size

    def item(self, number: int, index: int) -> Item:
        """Item `number`, a view of image `index`. A prefix precedes the caption ("far away a photo")."""
        concept, path = self.images[index]
        seed = seed_of(self.seed, "augmentation", self.view_number(number))
        rng = random.Random(seed)
        image = self.open_image(path)
        view = self._view(image, self.sizes[index], rng)
        mask = view.mask
        if self.options.masked and (subject := self.open_mask(path)) is not None:
            covered = self._view(subject.convert("RGB"), self.sizes[index], random.Random(seed))
            mask = mask * latent_cover(covered.pixels, self.latent_factor)
        caption = self.captions.get(path) or caption_of(self.method, concept, rng)
        sizes = time_ids(image.size, self.sizes[index], view.window, bool(self.options.buckets))
        return Item(view.pixels, mask, self._varied(view.prefix + caption, number), sizes)

    def view_number(self, number: int) -> int:
        """The item whose view item `number` has: itself, or with a pool of N views one of the first N passes.

        With a pool the first N passes over the images are those of a run without; then their views come
        again.
        """
        passes, place = divmod(number, len(self))
        if self.options.pool is None or passes < self.options.pool:
            return number
        again = passes % self.options.pool
        image = _order(self.seed, "instance order", passes, len(self))[place]
        return again * len(self) + _order(self.seed, "instance order", again, len(self)).index(image)

    def _view(self, image: Image.Image, size: Size, rng: random.Random) -> View:
        """The method's view of an image, which is first cut to its bucket's aspect ratio."""
        if self.options.buckets:
            image = cut_to(image, sides(size))
        return VIEWS[self.method.view](image, size, rng, self.hflip, self.noaug, self.latent_factor)

    def _varied(self, caption: str, number: int) -> str:
        """The caption of item `number` with its parts shuffled, or dropped."""
        rng = random.Random(seed_of(self.seed, "caption", number))
        if rng.random() < self.options.caption_dropout:
            return ""
        return shuffled_tags(caption, rng) if self.options.shuffle_captions else caption


class ClassDataset:
    """The class images of prior preservation: their centre, full mask, not augmented.

    captions: of the images that have one of their own; the others' is the class prompt.
    """

    def __init__(
        self, concepts: Sequence[Concept], size: int, latent_factor: int, seed: int, num_class_images: int
    ) -> None:
        self.size, self.latent_factor, self.seed = size, latent_factor, seed
        self.open_image = ImageCache(open_image)
        self.images: list[tuple[Concept, Path]] = []
        self.captions: dict[Path, str] = {}
        tokens = [concept.modifier_token for concept in concepts]
        for concept in concepts:
            assert concept.class_data_dir is not None and concept.class_prompt is not None, concept
            images, _ = list_images(concept.class_data_dir)
            self.images += [(concept, path) for path in images[:num_class_images]]
            self.captions |= class_captions(concept.class_data_dir, images, tokens)

    def __len__(self) -> int:
        return len(self.images)

    def class_item(self, number: int, size: Size | None = None) -> Item:
        """Item `number` >= 0 of the run. size: of the batch, where it is not the dataset's square."""
        concept, path = self.images[_shuffled(self.seed, "class order", number, len(self))]
        width, height = sides(size or self.size)
        mask = torch.ones(height // self.latent_factor, width // self.latent_factor)
        caption = self.captions.get(path, concept.class_prompt)
        image = self.open_image(path)
        ids = time_ids(image.size, (width, height), (0, 0), cut=True)
        return Item(centre_square(image, (width, height)), mask, caption, ids)

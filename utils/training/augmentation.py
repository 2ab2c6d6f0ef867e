"""Pictures: found in a folder, read as RGB whatever their format, augmented together with a latent mask.

S picture side in pixels, f pixels per latent, h = w = S // f latent pixels, s side of the resized picture.
"""

import random
from dataclasses import dataclass

import torch
from PIL import Image, ImageOps
from torch import Tensor

from utils.images import to_pixels

LONGEST_PREFIX = "a far away "


@dataclass(frozen=True)
class Augmentation:
    """One random draw: the picture, perhaps flipped, is resized to scale × scale.

    scale <= S: pasted at (top, left) of a grey canvas; scale > S: the window at (top, left) is cut out of it.
    """

    flip: bool
    scale: int
    top: int
    left: int
    prefix: str  # what the caption says of the scale, or ""


def draw_augmentation(size: int, rng: random.Random, hflip: bool, noaug: bool) -> Augmentation:
    """Custom Diffusion's draw: flip 1/2; scale from [S // 3, S] with p .66, else from [1.2 S, 1.4 S).

    Captions say "far away" below .6 S and "zoomed in" above S. `noaug` keeps scale = S; flips still happen.
    """
    flip = hflip and rng.random() < 0.5
    if noaug:
        scale = size
    elif rng.random() < 0.66:
        scale = rng.randrange(size // 3, size + 1)
    else:
        scale = rng.randrange(int(1.2 * size), int(1.4 * size))
    room = abs(size - scale)
    top, left = rng.randint(0, room), rng.randint(0, room)
    prefixes = ("",)
    if scale < 0.6 * size:
        prefixes = ("a far away ", "very small ")
    elif scale > size:
        prefixes = ("zoomed in ", "close up ")
    return Augmentation(flip, scale, top, left, rng.choice(prefixes))


def apply_augmentation(
    image: Image.Image, size: int, augmentation: Augmentation, latent_factor: int
) -> tuple[Tensor, Tensor]:
    """Carry out a draw on an RGB picture; its aspect ratio is squashed to a square, as in the official code.

    Returns pixels (3, S, S) in [-1, 1], canvas 0, and mask (h, w) of 0 and 1: where the picture counts.
    """
    scale, top, left = augmentation.scale, augmentation.top, augmentation.left
    if augmentation.flip:
        image = ImageOps.mirror(image)
    picture = to_pixels(image.resize((scale, scale), Image.Resampling.BILINEAR))  # (3, s, s)
    side = size // latent_factor
    if scale >= size:
        return picture[:, top : top + size, left : left + size].contiguous(), torch.ones(side, side)
    pixels = torch.zeros(3, size, size)
    pixels[:, top : top + scale, left : left + scale] = picture
    mask = torch.zeros(side, side)
    mask[latent_span(top, scale, latent_factor), latent_span(left, scale, latent_factor)] = 1
    return pixels, mask


def latent_span(start: int, length: int, latent_factor: int) -> slice:
    """The latents, along one axis, of `length` padded picture pixels from `start`, without the border ring.

    [start // f + 1, (start + length) // f - 1) as in the official code, where a full frame is ringed too
    (here it never comes to this function) and a small picture has an empty mask, a loss of 0/0 (here it
    counts wherever it touches a latent).
    """
    stop = start + length
    first, last = start // latent_factor + 1, stop // latent_factor - 1
    if first >= last:
        first, last = start // latent_factor, -(-stop // latent_factor)
    return slice(first, last)


def augment(
    image: Image.Image, size: int, rng: random.Random, hflip: bool, noaug: bool, latent_factor: int
) -> tuple[Tensor, Tensor, str]:
    """One random view: pixels (3, S, S) in [-1, 1], mask (h, w) of 0 and 1, caption prefix."""
    augmentation = draw_augmentation(size, rng, hflip, noaug)
    pixels, mask = apply_augmentation(image, size, augmentation, latent_factor)
    return pixels, mask, augmentation.prefix


def centre_square(image: Image.Image, size: int) -> Tensor:
    """The largest centred square, aspect kept, as (3, S, S) in [-1, 1]."""
    return to_pixels(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR))


def crop(
    image: Image.Image, size: int, rng: random.Random, hflip: bool, noaug: bool, latent_factor: int
) -> tuple[Tensor, Tensor, str]:
    """DreamBooth's view: the short side to S, aspect kept, a random square; full mask, no prefix.

    hflip: flipped half of the time, which the published script does not do. noaug: unused.
    """
    if hflip and rng.random() < 0.5:
        image = ImageOps.mirror(image)
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = rng.randint(0, width - size), rng.randint(0, height - size)
    pixels = to_pixels(image.resize((width, height), Image.Resampling.BILINEAR))  # (3, height, width)
    return pixels[:, top : top + size, left : left + size].contiguous(), _full(size, latent_factor), ""


def square(
    image: Image.Image, size: int, rng: random.Random, hflip: bool, noaug: bool, latent_factor: int
) -> tuple[Tensor, Tensor, str]:
    """Textual inversion's view: squashed to S × S, flipped half of the time if `hflip`; full mask."""
    if hflip and rng.random() < 0.5:
        image = ImageOps.mirror(image)
    pixels = to_pixels(image.resize((size, size), Image.Resampling.BICUBIC))  # (3, S, S)
    return pixels, _full(size, latent_factor), ""


def _full(size: int, latent_factor: int) -> Tensor:
    """(h, w): a mask of 1."""
    return torch.ones(size // latent_factor, size // latent_factor)


# A method's view of its images: (image, S, rng, hflip, noaug, f) -> pixels, mask, caption prefix.
VIEWS = {"scaled": augment, "crop": crop, "square": square}

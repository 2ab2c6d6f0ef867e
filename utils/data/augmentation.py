"""A method's view of an image: scaled, cropped or squashed, together with a mask of the latents that count.

W, H width and height in pixels, equal (S) without buckets; S their maximum, f pixels per latent,
h, w = H // f, W // f latent pixels, s the longer side of the resized image.
"""

import random
from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL import Image, ImageOps
from torch import Tensor

from utils.common.images import to_pixels

FAR, NEAR = ("a far away ", "very small "), ("zoomed in ", "close up ")  # before captions of scaled images
LONGEST_PREFIX = FAR[0]
Size = int | tuple[int, int]  # S, or (W, H)


@dataclass(frozen=True)
class Augmentation:
    """One random draw: the image, perhaps flipped, is resized, its longer side to scale.

    scale <= S: pasted at (top, left) of a grey canvas; scale > S: the window at (top, left) is cut out of it.
    """

    flip: bool
    scale: int
    top: int
    left: int
    prefix: str  # what the caption says of the scale, or ""


class View(NamedTuple):
    """A method's view of an image.

    pixels: (3, H, W) in [-1, 1]. mask: (h, w) of 0 and 1. prefix: of the caption. window: the corner
    (top, left) of what is shown, in pixels of the resized image; None for an image that was pasted small.
    """

    pixels: Tensor
    mask: Tensor
    prefix: str
    window: tuple[int, int] | None


def sides(size: Size) -> tuple[int, int]:
    """(W, H)."""
    return (size, size) if isinstance(size, int) else size


def scaled_sides(size: Size, scale: int) -> tuple[int, int]:
    """Width and height of an image of aspect W : H whose longer side is `scale`."""
    longer = max(sides(size))
    width, height = (max(1, round(side * scale / longer)) for side in sides(size))
    return width, height


def draw_augmentation(size: Size, rng: random.Random, hflip: bool, noaug: bool) -> Augmentation:
    """Custom Diffusion's draw: flip 1/2; scale from [S // 3, S] with p .66, else from [1.2 S, 1.4 S).

    Captions say "far away" below .6 S and "zoomed in" above S. `noaug` keeps scale = S; flips still happen.
    """
    flip = hflip and rng.random() < 0.5
    longer = max(sides(size))
    if noaug:
        scale = longer
    elif rng.random() < 0.66:
        scale = rng.randrange(longer // 3, longer + 1)
    else:
        scale = rng.randrange(int(1.2 * longer), int(1.4 * longer))
    room_x, room_y = (
        abs(whole - side) for whole, side in zip(sides(size), scaled_sides(size, scale), strict=True)
    )
    top, left = rng.randint(0, room_y), rng.randint(0, room_x)
    prefixes = ("",)
    if scale < 0.6 * longer:
        prefixes = FAR
    elif scale > longer:
        prefixes = NEAR
    return Augmentation(flip, scale, top, left, rng.choice(prefixes))


def apply_augmentation(
    image: Image.Image, size: Size, augmentation: Augmentation, latent_factor: int
) -> tuple[Tensor, Tensor]:
    """Carry out a draw on an RGB image; its aspect ratio becomes W : H, a square in the official code.

    Returns pixels (3, H, W) in [-1, 1], canvas 0, and mask (h, w) of 0 and 1: where the image counts.
    """
    (width, height), (w, h) = sides(size), scaled_sides(size, augmentation.scale)
    top, left = augmentation.top, augmentation.left
    if augmentation.flip:
        image = ImageOps.mirror(image)
    resized = to_pixels(image.resize((w, h), Image.Resampling.BILINEAR))  # (3, h, w)
    full = _full(size, latent_factor)
    if augmentation.scale >= max(width, height):
        return resized[:, top : top + height, left : left + width].contiguous(), full
    pixels = torch.zeros(3, height, width)
    pixels[:, top : top + h, left : left + w] = resized
    mask = torch.zeros_like(full)
    mask[latent_span(top, h, latent_factor), latent_span(left, w, latent_factor)] = 1
    return pixels, mask


def latent_span(start: int, length: int, latent_factor: int) -> slice:
    """The latents, along one axis, of `length` padded image pixels from `start`, without the border ring.

    [start // f + 1, (start + length) // f - 1) as in the official code, where a full frame is ringed too
    (here it never comes to this function) and a small image has an empty mask, a loss of 0/0 (here it
    counts wherever it touches a latent).
    """
    stop = start + length
    first, last = start // latent_factor + 1, stop // latent_factor - 1
    if first >= last:
        first, last = start // latent_factor, -(-stop // latent_factor)
    return slice(first, last)


def augment(
    image: Image.Image, size: Size, rng: random.Random, hflip: bool, noaug: bool, latent_factor: int
) -> View:
    """One random view."""
    augmentation = draw_augmentation(size, rng, hflip, noaug)
    pixels, mask = apply_augmentation(image, size, augmentation, latent_factor)
    small = augmentation.scale < max(sides(size))
    window = None if small else (augmentation.top, augmentation.left)
    return View(pixels, mask, augmentation.prefix, window)


def centre_square(image: Image.Image, size: Size) -> Tensor:
    """The largest centred part of aspect W : H, without distortion, as (3, H, W) in [-1, 1]."""
    return to_pixels(ImageOps.fit(image, sides(size), Image.Resampling.BILINEAR))


def crop(
    image: Image.Image, size: Size, rng: random.Random, hflip: bool, noaug: bool, latent_factor: int
) -> View:
    """DreamBooth's view: resized to cover W × H, aspect kept, a random window; full mask, no prefix.

    hflip: flipped half of the time, which the published script does not do. noaug: unused.
    """
    if hflip and rng.random() < 0.5:
        image = ImageOps.mirror(image)
    width, height = sides(size)
    scale = max(width / image.width, height / image.height)
    w, h = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    left, top = rng.randint(0, w - width), rng.randint(0, h - height)
    pixels = to_pixels(image.resize((w, h), Image.Resampling.BILINEAR))  # (3, h, w)
    window = pixels[:, top : top + height, left : left + width].contiguous()
    return View(window, _full(size, latent_factor), "", (top, left))


def square(
    image: Image.Image, size: Size, rng: random.Random, hflip: bool, noaug: bool, latent_factor: int
) -> View:
    """Textual inversion's view: squashed to W × H, flipped half of the time if `hflip`; full mask."""
    if hflip and rng.random() < 0.5:
        image = ImageOps.mirror(image)
    pixels = to_pixels(image.resize(sides(size), Image.Resampling.BICUBIC))  # (3, H, W)
    return View(pixels, _full(size, latent_factor), "", (0, 0))


def _full(size: Size, latent_factor: int) -> Tensor:
    """(h, w): a mask of 1."""
    width, height = sides(size)
    return torch.ones(height // latent_factor, width // latent_factor)


# A method's view of its images: (image, size, rng, hflip, noaug, f) -> View.
VIEWS = {"scaled": augment, "crop": crop, "square": square}

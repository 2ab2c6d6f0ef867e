"""Where the subject is in an image: a grey mask next to it, `dog.mask.png` of `dog.jpg`, or its alpha.

W, H width and height in pixels, f pixels per latent, h, w = H // f, W // f latent pixels.
"""

from collections.abc import Iterable
from pathlib import Path

import torch.nn.functional as F
from PIL import Image, ImageChops
from torch import Tensor

from utils.common.errors import UserError
from utils.common.files import shown
from utils.common.images import MASK_SUFFIX, image_size, open_alpha, open_image


def mask_file(image: Path) -> Path:
    """Where the mask of an image is looked for."""
    return image.with_name(image.stem + MASK_SUFFIX)


def has_mask(image: Path) -> bool:
    """Whether an image has a mask of its own, a file or an alpha channel."""
    return mask_file(image).is_file() or open_alpha(image) is not None


def open_mask(image: Path) -> Image.Image | None:
    """The subject of an image, 8-bit grey of its size, white where it is; None where the image has no mask.

    The file wins over the alpha channel. Raises UserError for a file of another size than the image, and for
    a mask without a pixel above half, under which nothing would be learned.
    """
    file = mask_file(image)
    mask = _grey(file) if file.is_file() else open_alpha(image)
    if mask is None:
        return None
    source = file if file.is_file() else image
    if mask.size != (size := image_size(image)):
        raise UserError(f"mask {shown(file)} is {mask.size}, its image {size}: give it the image's size")
    if mask.getextrema()[1] < 128:
        raise UserError(f"the mask of {shown(source)} is empty: paint the subject white, or remove it")
    return mask


def _grey(file: Path) -> Image.Image:
    """A mask file, its transparent parts black."""
    mask, alpha = open_image(file).convert("L"), open_alpha(file)
    return mask if alpha is None else ImageChops.multiply(mask, alpha)


def unmasked(images: Iterable[Path]) -> list[Path]:
    """The images without a mask; every mask is read and checked, errors as in `open_mask`."""
    return [path for path in images if open_mask(path) is None]


def latent_cover(pixels: Tensor, latent_factor: int) -> Tensor:
    """The share of each latent that the subject covers, (h, w) in [0, 1].

    pixels: (3, H, W) in [-1, 1], a view of the mask in the place of its image: subject above 0, canvas 0.
    """
    subject = (pixels[:1] > 0).float()  # (1, H, W)
    return F.avg_pool2d(subject, latent_factor)[0]

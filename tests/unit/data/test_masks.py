"""Masks of the subject: where they come from, how a view moves them, what the loss counts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.concepts import DOG
from utils.common.errors import UserError
from utils.common.images import list_images
from utils.config.methods import METHODS
from utils.data.dataset import ImageOptions, InstanceDataset
from utils.data.masks import has_mask, latent_cover, open_mask, unmasked
from utils.losses.denoise import loss_denoise


def left_half(size: tuple[int, int] = (32, 16)) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A JPEG stored 32 wide and 16 high, with the mask of its left half."""
    Image.new("RGB", (32, 16), "red").save(tmp_path / "dog.jpg")
    left_half().save(tmp_path / "dog.mask.png")
    return tmp_path / "dog.jpg"


def test_a_mask_is_no_image_and_belongs_to_its_image(image: Path):
    images, skipped = list_images(image.parent)
    assert images == [image] and [path.name for path in skipped] == ["dog.mask.png"]
    assert np.array_equal(open_mask(image), left_half())


def test_alpha_channel_is_a_mask_and_the_file_wins(image: Path):
    rgba = Image.new("RGBA", (4, 2), (9, 9, 9, 0))
    rgba.putpixel((3, 1), (9, 9, 9, 255))
    path = image.with_name("cut.png")
    rgba.save(path)
    assert np.asarray(open_mask(path)).tolist() == [[0, 0, 0, 0], [0, 0, 0, 255]]
    Image.new("L", (4, 2), 255).save(image.with_name("cut.mask.png"))
    assert np.asarray(open_mask(path)).min() == 255


def test_opaque_images_have_none(image: Path):
    Image.new("RGBA", (4, 2), (9, 9, 9, 255)).save(image.with_name("opaque.png"))
    Image.new("RGB", (4, 2)).save(image.with_name("plain.png"))
    images = list_images(image.parent)[0]
    assert [path.name for path in unmasked(images)] == ["opaque.png", "plain.png"]
    assert [has_mask(path) for path in images] == [True, False, False]


def test_transparent_part_of_a_mask_file_is_black(image: Path):
    mask = Image.new("RGBA", (32, 16), (0, 0, 0, 0))
    mask.paste((255, 255, 255, 255), (0, 0, 16, 16))
    mask.save(image.with_name("dog.mask.png"))
    assert np.array_equal(open_mask(image), left_half())


def test_size_is_that_of_the_image_as_it_is_seen(image: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (32, 16)).save(image, exif=exif)
    with pytest.raises(UserError, match=r"dog.mask.png is \(32, 16\), its image \(16, 32\)"):
        open_mask(image)
    left_half((16, 32)).save(image.with_name("dog.mask.png"))
    assert open_mask(image).size == (16, 32)


def test_empty_mask_is_refused(image: Path):
    Image.new("L", (32, 16), 100).save(image.with_name("dog.mask.png"))
    with pytest.raises(UserError, match="dog.mask.png is empty"):
        open_mask(image)


def test_cover_is_the_share_of_each_latent():
    pixels = torch.full((3, 4, 8), -1.0)
    pixels[:, :, :3] = 1
    assert latent_cover(pixels, 4).tolist() == [[0.75, 0.0]]
    pixels[:] = 0  # the canvas around a small image
    assert latent_cover(pixels, 4).sum() == 0


def instances(folder: Path, method: str, noaug: bool, masked: bool) -> InstanceDataset:
    concept = replace(DOG, instance_data_dir=folder)
    view = (16, 4, 0, True, noaug)
    return InstanceDataset([concept], METHODS[method], *view, ImageOptions(masked=masked))


@pytest.mark.parametrize(
    ("method", "noaug"), [("classdiffusion", True), ("classdiffusion", False), ("textual_inversion", False)]
)
def test_the_mask_goes_where_its_half_of_the_image_goes(image: Path, method: str, noaug: bool):
    """A view of an image that is white where its mask is: latents are covered as far as they are white."""
    Image.merge("RGB", [left_half()] * 3).save(image.with_name("dog.png"))
    image.unlink()
    masked, plain = (instances(image.parent, method, noaug, on) for on in (True, False))
    halves = set()
    for number in range(40):
        item, whole = masked.instance_item(number), plain.instance_item(number)
        assert item.pixels.equal(whole.pixels) and item.caption == whole.caption
        expected = latent_cover(item.pixels, 4) * whole.mask
        assert torch.equal(item.mask, expected)
        halves.add(int(item.mask[0, 0] > item.mask[0, -1]))
    assert halves == {0, 1}  # flipped with the image


def test_loss_counts_the_subject_alone_and_not_its_size():
    noise_pred, target = torch.ones(2, 4, 8, 8), torch.zeros(2, 4, 8, 8)
    noise_pred[:, :, :, 4:] = 100  # background
    small, large = torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)
    small[:, :, 2:4, 0:2], large[:, :, :, :4] = 1, 1
    assert (
        loss_denoise(noise_pred, target, small).item() == loss_denoise(noise_pred, target, large).item() == 4
    )
    assert loss_denoise(noise_pred, target, torch.zeros(2, 1, 8, 8)).item() == 0

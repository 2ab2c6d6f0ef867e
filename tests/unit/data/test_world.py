"""Photographs and words that toon does not know are said; what is of its world is not."""

import random
from pathlib import Path

import numpy as np
import pytest
from matplotlib import get_data_path
from PIL import Image

from scripts.toon.world.render import render
from scripts.toon.world.world import KINDS, sample_scene
from utils.bases.registry import BASES, REPOSITORY
from utils.common.images import open_image
from utils.data.world import flat_share, strangers

TOON = BASES["toon"]
PHOTOGRAPH = Path(get_data_path(), "sample_data", "grace_hopper.jpg")


def gradient() -> Image.Image:
    """A smooth shade with a camera's noise."""
    y, x = np.mgrid[:300, :400] / 300
    shade = np.stack([180 * x, 120 * y, 60 + 100 * x * y], axis=-1)
    noise = np.random.default_rng(0).normal(0, 12, shade.shape)
    return Image.fromarray(np.clip(shade + noise, 0, 255).astype(np.uint8))


def test_its_own_images_are_flat_and_photographs_are_not():
    renders = [flat_share(render(sample_scene(random.Random(seed)))) for seed in range(100)]
    assert min(renders) > TOON.world.flat + 0.05
    assert flat_share(open_image(PHOTOGRAPH)) == pytest.approx(0.378, abs=0.01)
    assert flat_share(gradient()) < 0.4 and flat_share(Image.new("RGB", (300, 200), "red")) == 1


def test_its_classes_are_those_of_its_world():
    assert TOON.world.classes == KINDS


def test_one_line_on_both():
    own = [open_image(path) for path in sorted((REPOSITORY / "data" / "dog").glob("*.png"))]
    assert strangers(TOON, ["dog", "teddy bear"], own) is None
    assert strangers(BASES["sd15"], ["borzoi"], [open_image(PHOTOGRAPH)]) is None
    assert strangers(TOON, ["borzoi", "dog"], [*own, open_image(PHOTOGRAPH), gradient()]) == (
        "toon does not know borzoi (only dog, cat, rabbit, pig, teddy bear, backpack, teapot, car, barn) and "
        "cannot learn photographs, and 2 of 7 images look like some: expect no likeness; for photographs use "
        "BASE=sd15, on a GPU"
    )

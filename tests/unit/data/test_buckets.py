"""Buckets: what an image loses at most, that batches have one size, and that every image is seen as often."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.concepts import DOG
from utils.common.errors import UserError
from utils.config.methods import METHODS
from utils.data.buckets import bucket_of, cut_share, cut_to, make_buckets
from utils.data.dataset import ClassDataset, ImageOptions, InstanceDataset, collate


@pytest.mark.parametrize(
    ("resolution", "coarse", "fine"), [(512, 64, 8), (768, 64, 8), (64, 16, 4), (16, 4, 2)]
)
def test_no_image_from_2_3_to_3_2_loses_more_than_a_tenth(resolution: int, coarse: int, fine: int):
    buckets = make_buckets(resolution, coarse, fine)
    assert (resolution, resolution) in buckets
    assert all(w * h <= resolution**2 and w % fine == h % fine == 0 for w, h in buckets)
    for width in range(2000, 4501, 7):
        size = (width, 3000)
        bucket = bucket_of(size, buckets)
        left = cut_to(Image.new("1", size), bucket)
        assert 1 - left.width * left.height / (width * 3000) <= 0.101  # whole pixels
        assert cut_share(size, bucket) <= 0.1


def test_step_is_the_coarsest_that_keeps_the_promise():
    assert {side % 64 for bucket in make_buckets(1024, 64, 8) for side in bucket} == {0}
    assert {side % 64 for bucket in make_buckets(256, 64, 8) for side in bucket} == {0, 32}
    with pytest.raises(UserError, match="--buckets: sizes near 16 px are too coarse"):
        make_buckets(16, 8, 8)


def test_square_image_stays_square_and_whole():
    assert bucket_of((700, 700), make_buckets(512, 64, 8)) == (512, 512)
    image = Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 30) % 251)
    assert np.array_equal(cut_to(image, (64, 64)), np.asarray(image)[:, 10:20])
    assert np.array_equal(cut_to(image, (96, 32)), image)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images 24 x 16, two 16 x 24, one square; each of one colour."""
    for number, size in enumerate([(24, 16)] * 5 + [(16, 24)] * 2 + [(20, 20)]):
        Image.new("RGB", size, (number * 30, 0, 0)).save(tmp_path / f"{number}.png")
    return tmp_path


def instances(folder: Path, method: str = "textual_inversion", seed: int = 0) -> InstanceDataset:
    options = ImageOptions(buckets=tuple(make_buckets(32, 8, 2)))
    view = (32, 4, seed, True, False)
    return InstanceDataset([replace(DOG, instance_data_dir=folder)], METHODS[method], *view, options)


def colour(item) -> int:
    return round((item.pixels[0].max().item() + 1) * 127.5) // 30


@pytest.mark.parametrize("method", ["classdiffusion", "dreambooth", "textual_inversion"])
def test_a_batch_has_one_size_in_every_view(folder: Path, method: str):
    data, shapes = instances(folder, method), set()
    for position in range(16):
        batch = collate(data.items(position, 2))
        height, width = batch.pixels.shape[2:]
        assert batch.mask.shape == (2, 1, height // 4, width // 4)
        shapes.add((width, height))
    assert shapes == {bucket_of(size, make_buckets(32, 8, 2)) for size in ((24, 16), (16, 24), (20, 20))}


def test_in_an_epoch_every_image_is_seen_once_for_each_place_of_a_batch(folder: Path):
    data = instances(folder)
    for epoch in range(3):
        items = [item for turn in range(8) for item in data.items(8 * epoch + turn, 3)]
        assert Counter(map(colour, items)) == dict.fromkeys(range(8), 3)


def test_batches_depend_on_the_seed_and_their_number_alone(folder: Path):
    unbroken = [data.pixels for p in range(12) for data in instances(folder).items(p, 2)]
    later = [data.pixels for p in range(7, 12) for data in instances(folder).items(p, 2)]
    assert all(a.equal(b) for a, b in zip(unbroken[14:], later, strict=True))
    other = [data.pixels for p in range(12) for data in instances(folder, seed=1).items(p, 2)]
    assert [a.shape for a in other] != [a.shape for a in unbroken]


def test_two_processes_with_batch_1_are_one_with_batch_2(folder: Path):
    data = instances(folder)
    for position in range(16):
        ranks = [item for rank in range(2) for item in data.items(position, 1, rank, processes=2)]
        assert all(a.pixels.equal(b.pixels) for a, b in zip(ranks, data.items(position, 2), strict=True))


def test_class_images_take_the_size_of_the_batch(folder: Path):
    concept = replace(DOG, class_data_dir=folder, class_prompt="a dog")
    item = ClassDataset([concept], 32, 4, seed=0, num_class_images=8).class_item(0, (40, 24))
    assert item.pixels.shape == (3, 24, 40) and item.mask.shape == (6, 10)

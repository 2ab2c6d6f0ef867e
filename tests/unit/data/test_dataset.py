"""Images read right, every branch of the augmentation, and items that depend on (seed, number) alone."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from utils.common.errors import UserError
from utils.common.images import check_images, list_images, open_image
from utils.common.seeds import seed_of
from utils.config.concepts import Concept
from utils.config.methods import METHODS
from utils.data.augmentation import (
    Augmentation,
    apply_augmentation,
    augment,
    centre_square,
    crop,
    draw_augmentation,
    latent_span,
    square,
)
from utils.data.captions import TEMPLATES
from utils.data.dataset import ClassDataset, ImageOptions, InstanceDataset, collate, items_of_step, time_ids

RED, BLUE = (255, 0, 0), (0, 0, 255)


def halves(width: int = 8, height: int = 8) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


# --- seeds


def test_seed_of_is_stable_and_names_the_draw():
    # recorded once: a changed value would change every published run
    assert seed_of(0, "augmentation", 0) == 8_428_958_393_619_136_609
    seeds = {seed_of(run, name, item) for run in range(3) for name in ("a", "b") for item in range(50)}
    assert len(seeds) == 300 and all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(1, 23) != seed_of(12, 3) and seed_of("1") != seed_of(1)
    with pytest.raises(AssertionError):
        seed_of(np.int64(1))  # its repr differs between numpy versions


# --- listing


def test_list_images_sorted_and_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("b.PNG", "a.jpg", "c.webp", ".DS_Store", "._a.jpg", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "more.png").mkdir()
    images, skipped = list_images(tmp_path)
    assert [path.name for path in images] == ["a.jpg", "b.PNG", "c.webp"]
    assert [path.name for path in skipped] == [".DS_Store", "._a.jpg", "more.png", "notes.txt"]

    entries = sorted(tmp_path.iterdir())
    for seed in range(5):  # whatever order the file system gives
        shuffled = random.Random(seed).sample(entries, len(entries))
        monkeypatch.setattr(Path, "iterdir", lambda self, shuffled=shuffled: iter(shuffled))
        assert list_images(tmp_path) == (images, skipped)


def test_list_images_missing_or_empty(tmp_path: Path):
    with pytest.raises(UserError, match="none does not exist"):
        list_images(tmp_path / "none")
    (tmp_path / ".DS_Store").touch()
    with pytest.raises(UserError, match=f"no images in {tmp_path}.*\\.png"):
        list_images(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        list_images(tmp_path / ".DS_Store")


# --- reading


def saved(tmp_path: Path, image: Image.Image, name: str = "image.png", **options) -> Image.Image:
    """The image after writing it and reading it back with open_image."""
    image.save(tmp_path / name, **options)
    opened = open_image(tmp_path / name)
    assert opened.mode == "RGB"
    return opened


def test_open_rgb(tmp_path: Path):
    assert np.array_equal(saved(tmp_path, halves()), halves())


# where the red, left half of the stored image must be seen: ((x, y) of a red pixel, (x, y) of a blue one)
@pytest.mark.parametrize(
    ("orientation", "size", "red", "blue"),
    [
        (1, (8, 4), (0, 0), (7, 0)),
        (2, (8, 4), (7, 0), (0, 0)),
        (3, (8, 4), (7, 3), (0, 0)),
        (6, (4, 8), (0, 0), (0, 7)),
        (8, (4, 8), (0, 7), (0, 0)),
    ],
)
def test_open_exif_orientation(tmp_path: Path, orientation: int, size, red, blue):
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = saved(tmp_path, halves(8, 4), exif=exif)
    assert opened.size == size
    assert (opened.getpixel(red), opened.getpixel(blue)) == (RED, BLUE)


def test_open_transparency_on_white(tmp_path: Path):
    rgba = Image.new("RGBA", (3, 1), (200, 100, 0, 0))
    rgba.putpixel((1, 0), (200, 100, 0, 255))
    rgba.putpixel((2, 0), (255, 0, 0, 51))  # a fifth of red over white
    opened = saved(tmp_path, rgba)
    pixels = [opened.getpixel((x, 0)) for x in range(3)]
    assert pixels == [(255, 255, 255), (200, 100, 0), (255, 204, 204)]

    grey = Image.new("LA", (2, 1), (0, 0))
    grey.putpixel((1, 0), (40, 255))
    opened = saved(tmp_path, grey)
    assert [opened.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (40, 40, 40)]


def test_open_palette(tmp_path: Path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *BLUE])
    palette.putpixel((1, 0), 1)
    assert [saved(tmp_path, palette).getpixel((x, 0)) for x in range(2)] == [RED, BLUE]
    opened = saved(tmp_path, palette, transparency=0)
    assert [opened.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), BLUE]
    opened = saved(tmp_path, palette, "image.gif")
    assert [opened.getpixel((x, 0)) for x in range(2)] == [RED, BLUE]


def test_open_grey_one_bit_and_cmyk(tmp_path: Path):
    assert saved(tmp_path, Image.new("L", (2, 2), 77)).getpixel((1, 1)) == (77, 77, 77)
    assert saved(tmp_path, Image.new("1", (2, 2), 1)).getpixel((1, 1)) == (255, 255, 255)
    red, green, blue = saved(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "cmyk.jpg").getpixel(
        (4, 4)
    )
    assert red > 250 and green < 5 and blue < 5


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "grey.tiff"])
def test_open_16_bit(tmp_path: Path, name: str):
    values = np.array([[0, 128, 257 * 100, 40000, 65535]], dtype=np.uint16)
    opened = saved(tmp_path, Image.fromarray(values), name)
    assert np.asarray(opened)[0, :, 0].tolist() == [0, 0, 100, 156, 255]  # 40000 / 257 = 155.6


def test_open_mode_i_and_unknown_ranges(tmp_path: Path):
    values = np.array([[0, 257, 65535]], dtype=np.int32)
    assert np.asarray(saved(tmp_path, Image.fromarray(values), "i.tif"))[0, :, 1].tolist() == [0, 1, 255]
    for wrong in (np.array([[0, 65536]], dtype=np.int32), np.array([[0.5]], dtype=np.float32)):
        with pytest.raises(UserError, match="wrong.tif.*8 or 16 bits"):
            saved(tmp_path, Image.fromarray(wrong), "wrong.tif")


def test_unreadable_image_is_named(tmp_path: Path):
    good, text, cut = tmp_path / "good.png", tmp_path / "text.jpg", tmp_path / "cut.png"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(good)
    text.write_text("not an image")
    cut.write_bytes(good.read_bytes()[:5000])  # the header is fine, the pixels are not
    check_images([good])
    for bad in (text, cut):
        with pytest.raises(UserError, match=f"cannot read image {bad} .*replace or remove it"):
            check_images([good, bad])


# --- augmentation: the draw


def draws(size: int, hflip: bool = True, noaug: bool = False, count: int = 20_000) -> list[Augmentation]:
    rng = random.Random(0)
    return [draw_augmentation(size, rng, hflip, noaug) for _ in range(count)]


def test_draw_scales_prefixes_and_positions():
    size = 64
    plans = draws(size)
    assert {plan.scale for plan in plans} == set(range(21, 65)) | set(range(76, 89))
    assert sum(plan.scale <= size for plan in plans) / len(plans) == pytest.approx(0.66, abs=0.015)
    assert sum(plan.flip for plan in plans) / len(plans) == pytest.approx(0.5, abs=0.015)
    for plan in plans:
        room = abs(size - plan.scale)
        assert 0 <= plan.top <= room and 0 <= plan.left <= room
    for wanted, prefixes in (
        (lambda scale: scale < 38.4, {"a far away ", "very small "}),
        (lambda scale: 38.4 <= scale <= 64, {""}),
        (lambda scale: scale > 64, {"zoomed in ", "close up "}),
    ):
        assert {plan.prefix for plan in plans if wanted(plan.scale)} == prefixes
    corners = {(plan.top, plan.left) for plan in plans if plan.scale == 63}
    assert corners == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_draw_at_512_has_the_official_bounds():
    scales = {plan.scale for plan in draws(512)}
    assert min(scales) == 170 and max(scales) == 715  # 512 // 3; below int(1.4 * 512) = 716
    assert scales.isdisjoint(range(513, 614)) and 614 in scales  # int(1.2 * 512) = 614


def test_draw_without_flip_or_augmentation():
    assert not any(plan.flip for plan in draws(64, hflip=False, count=500))
    plans = draws(64, noaug=True, count=500)
    assert {(plan.scale, plan.top, plan.left, plan.prefix) for plan in plans} == {(64, 0, 0, "")}
    assert {plan.flip for plan in plans} == {False, True}


# --- augmentation: fixed plans


def test_padded_image_and_its_ringed_mask():
    pixels, mask = apply_augmentation(halves(10, 20), 64, Augmentation(False, 32, 8, 16, ""), latent_factor=4)
    assert pixels.shape == (3, 64, 64) and mask.shape == (16, 16)
    assert pixels.dtype == mask.dtype == torch.float32
    assert pixels[:, 8, 16].tolist() == [1, -1, -1]  # red corner of the pasted image
    assert pixels[:, 39, 47].tolist() == [-1, -1, 1]  # blue corner opposite
    outside = torch.ones(64, 64, dtype=torch.bool)
    outside[8:40, 16:48] = False
    assert (pixels[:, outside] == 0).all() and (pixels[:, ~outside] != 0).any(dim=0).all()
    expected = torch.zeros(16, 16)
    expected[3:9, 5:11] = 1  # 8 // 4 + 1 … 40 // 4 - 1; 16 // 4 + 1 … 48 // 4 - 1
    assert torch.equal(mask, expected)


def test_flip_mirrors_left_and_right():
    pixels, _ = apply_augmentation(halves(), 64, Augmentation(True, 32, 8, 16, ""), latent_factor=4)
    assert pixels[:, 8, 16].tolist() == [-1, -1, 1] and pixels[:, 8, 47].tolist() == [1, -1, -1]


def test_full_frame_has_a_full_mask():
    pixels, mask = apply_augmentation(halves(), 64, Augmentation(False, 64, 0, 0, ""), latent_factor=4)
    assert torch.equal(mask, torch.ones(16, 16))
    assert pixels[:, 0, 0].tolist() == [1, -1, -1] and pixels[:, 63, 63].tolist() == [-1, -1, 1]


def test_zoomed_image_is_a_window_of_the_larger_one():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8))
    pixels, mask = apply_augmentation(image, 64, Augmentation(False, 80, 5, 16, ""), latent_factor=4)
    window = torch.tensor(np.asarray(image)[5:69, 16:80] / 127.5 - 1, dtype=torch.float32).permute(2, 0, 1)
    torch.testing.assert_close(
        pixels, window, rtol=0, atol=1e-6
    )  # at its own size the image is not resampled
    assert torch.equal(mask, torch.ones(16, 16))


@pytest.mark.parametrize(
    ("start", "length", "factor", "span"),
    [
        (0, 300, 8, (1, 36)),  # 300 // 8 = 37, less the ring
        (100, 170, 8, (13, 32)),  # 100 // 8 + 1 … 270 // 8 - 1
        (212, 300, 8, (27, 63)),
        (0, 24, 8, (1, 2)),  # three latents: one is left
        (0, 23, 8, (0, 3)),  # the ring leaves nothing: every latent that is touched
        (8, 8, 8, (1, 2)),
        (7, 2, 8, (0, 2)),
        (62, 2, 8, (7, 8)),
    ],
)
def test_latent_span(start: int, length: int, factor: int, span: tuple[int, int]):
    found = latent_span(start, length, factor)
    assert (found.start, found.stop) == span


@pytest.mark.parametrize(("size", "factor"), [(8, 8), (8, 4), (16, 8), (24, 8), (32, 8), (64, 8), (16, 2)])
def test_mask_is_never_empty_and_stays_inside(size: int, factor: int):
    side = size // factor
    for scale in range(max(1, size // 3), size + 1):
        for start in range(size - scale + 1):
            span = latent_span(start, scale, factor)
            assert 0 <= span.start < span.stop <= side
    for seed in range(200):
        pixels, mask, _, _ = augment(halves(), size, random.Random(seed), True, False, factor)
        assert pixels.shape == (3, size, size) and mask.shape == (side, side)
        assert mask.sum() >= 1 and set(mask.unique().tolist()) <= {0.0, 1.0}
        assert pixels.min() >= -1 and pixels.max() <= 1


def test_augment_is_the_draw_then_the_transform():
    for seed in range(20):
        pixels, mask, prefix, _ = augment(halves(), 64, random.Random(seed), True, False, 4)
        plan = draw_augmentation(64, random.Random(seed), True, False)
        expected = apply_augmentation(halves(), 64, plan, 4)
        assert prefix == plan.prefix
        assert torch.equal(pixels, expected[0]) and torch.equal(mask, expected[1])


def test_centre_square_keeps_the_aspect():
    image = Image.new("RGB", (32, 16), RED)
    image.paste(BLUE, (8, 0, 24, 16))
    pixels = centre_square(image, 16)
    assert pixels.shape == (3, 16, 16)
    assert (pixels == torch.tensor([-1.0, -1.0, 1.0])[:, None, None]).all()


# --- items


@pytest.fixture
def concepts(tmp_path: Path) -> list[Concept]:
    """A dog with 3 images and a cat with 2; 4 class images each."""
    made = []
    for token, word, count in (("<new1>", "dog", 3), ("<new2>", "cat", 2)):
        for kind, number in ((word, count), (f"class_{word}", 4)):
            (tmp_path / kind).mkdir()
            for i in range(number):
                noise = np.random.default_rng(seed_of(kind, i)).integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(noise).save(tmp_path / kind / f"{i}.png")
        (tmp_path / word / ".DS_Store").touch()
        prompt = f"a photo of a {token} {word}"
        made.append(
            Concept(
                modifier_token=token,
                initializer_token="ktn",
                cls_token=word,
                instance_prompt=prompt,
                instance_data_dir=tmp_path / word,
                class_prompt=f"a photo of a {word}",
                class_data_dir=tmp_path / f"class_{word}",
            )
        )
    return made


def instances(concepts: list[Concept], seed: int = 0, **changes) -> InstanceDataset:
    settings = {"method": METHODS["classdiffusion"], "size": 16, "latent_factor": 4, "hflip": True}
    return InstanceDataset(concepts, **(settings | {"noaug": False} | changes), seed=seed)


def test_a_pool_is_the_first_passes_again(concepts):
    free, pooled = instances(concepts), instances(concepts, options=ImageOptions(pool=2))
    count, views = len(free), {}
    for number in range(6 * count):
        if number < 2 * count:
            assert_same(pooled.instance_item(number), free.instance_item(number))
        views.setdefault(pooled.view_number(number), []).append(number)
    assert sorted(views) == list(range(2 * count))
    assert [len(numbers) for numbers in views.values()] == [3] * 2 * count
    for view, numbers in views.items():
        for number in numbers:  # the same image, in the same view and with the same caption
            assert_same(pooled.instance_item(number), free.instance_item(view))


def assert_same(one, other) -> None:
    assert torch.equal(one.pixels, other.pixels) and torch.equal(one.mask, other.mask)
    captions = "captions" if hasattr(one, "captions") else "caption"
    assert getattr(one, captions) == getattr(other, captions)


def test_skipped_files_are_reported(concepts: list[Concept]):
    dataset = instances(concepts)
    assert len(dataset) == 5
    assert [path.name for path in dataset.skipped] == [".DS_Store", ".DS_Store"]


def test_each_epoch_shows_each_image_once(concepts: list[Concept]):
    dataset = instances(concepts, noaug=True, hflip=False)
    epochs = [[dataset.instance_item(5 * epoch + i) for i in range(5)] for epoch in range(6)]
    pictures = [[item.pixels.numpy().tobytes() for item in epoch] for epoch in epochs]
    assert all(len(set(epoch)) == 5 and set(epoch) == set(pictures[0]) for epoch in pictures)
    assert len({tuple(epoch) for epoch in pictures}) > 1  # not always in the same order
    captions = Counter(item.caption for item in epochs[0])
    assert captions == {"a photo of a <new1> dog": 3, "a photo of a <new2> cat": 2}


def test_caption_is_prefix_and_prompt(concepts: list[Concept]):
    dataset = instances(concepts[:1])
    prompt = "a photo of a <new1> dog"
    captions = {dataset.instance_item(number).caption for number in range(200)}
    prefixes = ("", "a far away ", "very small ", "zoomed in ", "close up ")
    assert captions == {prefix + prompt for prefix in prefixes}


def test_items_do_not_depend_on_what_was_read_before(concepts: list[Concept]):
    unbroken = [instances(concepts).instance_item(number) for number in range(12)]
    resumed, backwards = instances(concepts), instances(concepts)
    for number in range(7, 12):
        assert_same(resumed.instance_item(number), unbroken[number])
    for number in reversed(range(12)):
        assert_same(backwards.instance_item(number), unbroken[number])
    changed = instances(concepts, seed=1)
    assert not all(torch.equal(changed.instance_item(n).pixels, unbroken[n].pixels) for n in range(12))


def test_two_processes_with_batch_1_are_one_with_batch_2(concepts: list[Concept]):
    dataset = instances(concepts)
    for step in range(6):
        together = collate([dataset.instance_item(n) for n in items_of_step(step, 2)])
        ranks = [items_of_step(step, 1, rank, processes=2) for rank in range(2)]
        assert_same(collate([dataset.instance_item(n) for numbers in ranks for n in numbers]), together)


def test_items_of_step_tile_the_run():
    numbers = [n for step in range(4) for rank in range(3) for n in items_of_step(step, 2, rank, processes=3)]
    assert numbers == list(range(24))
    assert items_of_step(5, 2) == range(10, 12)


def test_collate_shapes(concepts: list[Concept]):
    batch = collate([instances(concepts).instance_item(number) for number in range(3)])
    assert batch.pixels.shape == (3, 3, 16, 16) and batch.mask.shape == (3, 1, 4, 4)
    assert len(batch.captions) == 3


def test_class_items(concepts: list[Concept]):
    dataset = ClassDataset(concepts, size=16, latent_factor=4, seed=0, num_class_images=3)
    assert len(dataset) == 6
    items = [dataset.class_item(number) for number in range(6)]
    assert Counter(item.caption for item in items) == {"a photo of a dog": 3, "a photo of a cat": 3}
    assert len({item.pixels.numpy().tobytes() for item in items}) == 6
    assert all(torch.equal(item.mask, torch.ones(4, 4)) for item in items)
    assert all(item.pixels.shape == (3, 16, 16) for item in items)
    assert_same(ClassDataset(concepts, 16, 4, 0, 3).class_item(4), items[4])


# --- other methods' views and captions


def test_dreambooths_view_keeps_the_aspect_and_crops_along_the_long_side():
    image = Image.new("RGB", (24, 8), RED)
    image.paste(BLUE, (12, 0, 24, 8))
    reds = set()
    for seed in range(40):
        pixels, mask, prefix, _ = crop(image, 16, random.Random(seed), False, False, 4)
        assert pixels.shape == (3, 16, 16) and torch.equal(mask, torch.ones(4, 4)) and prefix == ""
        assert torch.equal(pixels, pixels[:, :1].expand(-1, 16, -1))  # the short side is whole
        row = pixels[:, 0]
        reds.add(int((row[0] > row[2]).sum()))
        assert row[0, 0] > row[2, 0] or reds  # never mirrored: red is on the left wherever both are seen
        if 0 < int((row[0] > row[2]).sum()) < 16:
            assert row[0, 0] > row[2, 0]
    assert min(reds) == 0 and max(reds) == 16 and len(reds) > 5  # 48 x 16: any window of 16 of the 48 columns


def test_textual_inversions_view_squashes_the_whole_image_and_flips_half_of_the_time():
    image, flipped = halves(24, 8), 0
    for seed in range(200):
        pixels, mask, prefix, _ = square(image, 16, random.Random(seed), True, False, 4)
        assert torch.equal(mask, torch.ones(4, 4)) and prefix == ""
        left, right = pixels[:, 8, 2], pixels[:, 8, 13]  # away from the seam
        assert {tuple(left.tolist()), tuple(right.tolist())} == {(1, -1, -1), (-1, -1, 1)}
        flipped += bool(left[2] > 0)
    assert 70 < flipped < 130


def test_templates_name_the_token_in_the_place_of_the_noun(concepts: list[Concept]):
    named = [replace(each, subject=each.modifier_token) for each in concepts]
    dataset = instances(named, method=METHODS["textual_inversion"])
    captions = [dataset.instance_item(number).caption for number in range(400)]
    assert len(TEMPLATES) == len(set(TEMPLATES)) == 27
    assert set(captions) == {t.format(token) for t in TEMPLATES for token in ("<new1>", "<new2>")}


@pytest.mark.parametrize(
    ("photo", "size", "window", "cut", "ids"),
    [
        ((600, 800), 1024, (0, 0), False, (800, 600, 0, 0, 1024, 1024)),  # squashed to a square
        ((600, 800), 1024, (30, 50), False, (800, 600, 30, 50, 1024, 1024)),  # DreamBooth's window
        (
            (1000, 500),
            (1024, 1024),
            (0, 0),
            True,
            (500, 1000, 0, 512, 1024, 1024),
        ),
        ((500, 1000), (832, 1216), (0, 0), True, (1000, 500, 223, 0, 1216, 832)),  # a bucket
        ((500, 1000), (832, 1216), (10, 20), True, (1000, 500, 233, 20, 1216, 832)),  # zoomed in, in a bucket
        ((600, 800), 1024, None, False, (1024, 1024, 0, 0, 1024, 1024)),  # pasted small
    ],
)
def test_sizes_that_a_family_is_reported(photo, size, window, cut, ids):
    assert time_ids(photo, size, window, cut) == ids


def test_sizes_of_items(concepts):
    """16 px squares: of Custom Diffusion's views those pasted small, and those whole or zoomed."""
    data = instances(concepts)
    photos = {open_image(path).size[::-1] for _, path in data.images}
    seen = {data.instance_item(number).sizes for number in range(60)}
    assert (16, 16, 0, 0, 16, 16) in seen  # pasted small
    others = [ids for ids in seen if ids[:2] != (16, 16)]
    assert {ids[:2] for ids in others} <= photos and all(ids[4:] == (16, 16) for ids in others)
    assert all(0 <= corner <= 0.4 * 16 for ids in others for corner in ids[2:4])
    assert any(ids[2] or ids[3] for ids in others)

"""Class images: which are missing, what is refused, and that each depends on its own seed alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.concepts import DOG
from utils.bases.registry import base_row
from utils.common.errors import UserError
from utils.common.images import save_png
from utils.common.seeds import seed_of
from utils.config.concepts import Concept
from utils.data.class_images import (
    check_class_images,
    drawn_by_others,
    generate_class_images,
    missing_class_images,
)

SD = base_row("sd15")


def concept(folder: Path, prompt: str = "a photo of a dog") -> Concept:
    return replace(DOG, class_prompt=prompt, class_data_dir=folder)


def draw_from_seeds(calls: list[tuple]):
    """Stands in for sampling: a 1 x 1 image that tells the last byte of its seed."""

    def sample(pipeline, prompts, seeds, num_inference_steps, guidance_scale, eta, batch_size):
        calls.append((prompts, num_inference_steps, guidance_scale, eta, batch_size))
        for _, seed in zip(prompts, seeds, strict=True):
            yield Image.new("RGB", (1, 1), (seed % 256, 0, 0))

    return sample


def red(path: Path) -> int:
    with Image.open(path) as picture:
        return int(np.asarray(picture)[0, 0, 0])


def test_missing_images_count_the_users_own(tmp_path: Path):
    assert missing_class_images(tmp_path / "none", 3) == [0, 1, 2]
    Image.new("RGB", (1, 1)).save(tmp_path / "mine.JPG", format="JPEG")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "._class-00000.png").touch()  # what macOS leaves behind is no image
    (tmp_path / "folder.png").mkdir()
    assert missing_class_images(tmp_path, 3) == [0, 1]
    (tmp_path / "class-00001.png").touch()
    assert missing_class_images(tmp_path, 3) == [0]
    assert missing_class_images(tmp_path, 1) == []


def test_images_are_drawn_once_with_their_own_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple] = []
    monkeypatch.setattr("utils.sampling.images.sample", draw_from_seeds(calls))
    dogs, cats = concept(tmp_path / "dogs"), concept(tmp_path / "cats", "a photo of a cat")
    generate_class_images(None, [dogs, cats], SD, count=3, batch_size=2, seed=7)
    assert calls == [([c.class_prompt] * 3, 50, 7.5, 0.0, 2) for c in (dogs, cats)]
    for number in range(3):
        path = tmp_path / "cats" / f"class-0000{number}.png"
        seed = seed_of(7, "class image", number)
        assert red(path) == seed % 256
        with Image.open(path) as picture:
            assert picture.text == {"prompt": "a photo of a cat", "seed": str(seed), "base": "sd15"}

    (tmp_path / "dogs" / "class-00001.png").unlink()
    generate_class_images(None, [dogs, cats], SD, count=3, batch_size=2, seed=7)
    assert calls[2:] == [(["a photo of a dog"], 50, 7.5, 0.0, 2)]
    assert red(tmp_path / "dogs" / "class-00001.png") == seed_of(7, "class image", 1) % 256


def test_processes_share_the_work_whoever_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple] = []
    monkeypatch.setattr("utils.sampling.images.sample", draw_from_seeds(calls))
    for rank in (1, 0):
        generate_class_images(None, [concept(tmp_path)], SD, 5, 4, seed=0, rank=rank, processes=2)
    assert [len(prompts) for prompts, *_ in calls] == [2, 3]
    assert missing_class_images(tmp_path, 5) == []


def test_images_of_another_prompt_and_broken_ones_are_refused(tmp_path: Path):
    check_class_images(tmp_path / "none", "a dog", 3)
    Image.new("RGB", (2, 2)).save(tmp_path / "mine.png")  # a picture of unknown origin is the user's choice
    save_png(Image.new("RGB", (2, 2)), tmp_path / "class-00000.png", {"prompt": "a dog", "seed": 1})
    check_class_images(tmp_path, "a dog", 3)
    with pytest.raises(UserError, match="class-00000.png shows 'a dog', not 'a cat'"):
        check_class_images(tmp_path, "a cat", 3)
    (tmp_path / "mine.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot read image .*mine.png"):
        check_class_images(tmp_path, "a dog", 3)


def test_images_that_another_base_drew_are_counted(tmp_path: Path):
    for number, base in enumerate(("toon", "toon", "sd15")):
        save_png(Image.new("RGB", (2, 2)), tmp_path / f"class-0000{number}.png", {"base": base})
    Image.new("RGB", (2, 2)).save(tmp_path / "mine.jpg")
    assert drawn_by_others(sorted(tmp_path.iterdir()), "sd15") == {"toon": 2}
    assert drawn_by_others(sorted(tmp_path.iterdir()), "toon") == {"sd15": 1}


def test_folders_that_cannot_be_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("utils.sampling.images.sample", draw_from_seeds([]))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--class_data_dir .*file cannot be used"):
        check_class_images(tmp_path / "file", "a dog", 3)
    with pytest.raises(UserError, match="cannot make .*file/dogs: Not a directory"):
        generate_class_images(None, [concept(tmp_path / "file" / "dogs")], SD, 1, 1, seed=0)

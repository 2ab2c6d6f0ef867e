"""Folders of images with masks: read, and refused by name; toon's renders know their masks."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.toon import masked_scenes
from utils.analysis.scenes import read_mask, read_scenes
from utils.common.errors import UserError


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "0.png")
    mask = np.zeros((4, 4), dtype=np.uint8)
    mask[:2, :3] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(mask * 0).save(tmp_path / "black.png")
    Image.new("L", (8, 8), 255).save(tmp_path / "large.png")
    return tmp_path


def write(folder, **changes) -> None:
    scene = {"image": "0.png", "prompt": "a {} in the snow", "masks": {"{}": "mask.png"}} | changes
    scene = {name: value for name, value in scene.items() if value is not None}
    (folder / "scenes.json").write_text(json.dumps({"class": "dog", "scenes": [scene]}))


def test_a_mask_is_the_share_of_each_place(folder):
    write(folder)
    word, (scene,) = read_scenes(folder)
    assert word == "dog" and scene.prompt == "a {} in the snow"
    assert read_mask(scene.masks["{}"], 2).tolist() == [[1.0, 0.5], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"masks": {"snow": "mask.png"}}, "needs one {} in its prompt, and a mask for it"),
        ({"prompt": "a dog in the snow"}, "needs one {}"),
        ({"masks": {"{}": "mask.png", "hat": "mask.png"}}, "a mask for 'hat', which is not a word"),
        ({"masks": {"{}": "large.png"}}, "differ in size"),
        ({"masks": {"{}": "black.png"}}, "all black"),
        ({"masks": {"{}": "gone.png"}}, "gone.png"),
        ({"prompt": None}, "needs image, prompt and masks"),
    ],
)
def test_a_broken_scene_is_named(folder, changes, words):
    write(folder, **changes)
    with pytest.raises(UserError) as refused:
        read_scenes(folder)
    assert words in str(refused.value)


def test_a_folder_without_scenes_says_what_writes_one(tmp_path):
    with pytest.raises(UserError, match="scripts.toon.masked_scenes"):
        read_scenes(tmp_path)


def test_toons_masks_are_apart_and_lie_where_the_objects_do(tmp_path):
    for scene in masked_scenes.situations("dog", 6, seed=0):
        masks = masked_scenes.masks_of(scene, 64)
        assert set(masks) == {"{}", scene.neighbour, scene.worn}
        subject, neighbour, worn = (masks[word] for word in ("{}", scene.neighbour, scene.worn))
        assert (subject * worn).sum() == 0
        assert 0.05 < subject.mean() < 0.5 and 0.005 < worn.mean() < 0.2
        columns = torch.arange(64.0)
        middle = {word: (mask.sum(0) * columns).sum() / mask.sum() for word, mask in masks.items()}
        assert abs(middle["{}"] - 64 * scene.x) < 8  # the subject stands where the scene says
        assert middle[scene.neighbour] > 64 * 0.6  # and the neighbour to its right
        assert neighbour.mean() > 0.01
    masked_scenes.main(["--individual", "barn", "--count", "2", "--output_dir", str(tmp_path / "barn")])
    word, scenes = read_scenes(tmp_path / "barn")
    assert word == "barn" and all(len(scene.masks) == 2 for scene in scenes)  # nothing is worn

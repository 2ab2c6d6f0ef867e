"""Images whose objects' masks are known: a folder with scenes.json, for any base.

    {"class": "dog", "scenes": [{"image": "0.png", "prompt": "a photo of a {} wearing a hat next to a ball",
                                 "masks": {"{}": "0-subject.png", "hat": "0-hat.png", "ball": "0-ball.png"}}]}

"{}" stands for the concept or its class. A mask is an image of the same size, white where the object is.
`python -m scripts.toon.masked_scenes` writes such a folder.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from utils.common.errors import UserError
from utils.common.files import path_inside, read_json, shown
from utils.common.images import open_image

FILE, SUBJECT = "scenes.json", "{}"


@dataclass(frozen=True)
class Scene:
    """An image, a prompt that describes it, and masks for the concept (SUBJECT) and words of the prompt."""

    image: Path
    prompt: str
    masks: dict[str, Path]


def read_scenes(folder: Path) -> tuple[str, list[Scene]]:
    """The class word and the scenes. Raises UserError for a folder that is not one, naming the entry."""
    if not (folder / FILE).is_file():
        raise UserError(f"{shown(folder)} has no {FILE}; `python -m scripts.toon.masked_scenes` writes one")
    content = read_json(folder / FILE)
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("class"), str)
        or not isinstance(content.get("scenes"), list)
        or not content["scenes"]
    ):
        raise UserError(f"{shown(folder / FILE)} needs a class word and a list of scenes")
    return content["class"], [_scene(folder, number, each) for number, each in enumerate(content["scenes"])]


def _scene(folder: Path, number: int, entry: Any) -> Scene:
    where = f"{shown(folder / FILE)}, scene {number}"
    if not isinstance(entry, dict) or entry.keys() != {"image", "prompt", "masks"}:
        raise UserError(f"{where} needs image, prompt and masks, and nothing else")
    if not isinstance(entry["prompt"], str) or not isinstance(entry["masks"], dict):
        raise UserError(f"{where} needs a text as its prompt, and an object of masks")
    scene = Scene(
        path_inside(folder, entry["image"], where),
        entry["prompt"],
        {word: path_inside(folder, name, where) for word, name in entry["masks"].items()},
    )
    if scene.prompt.count(SUBJECT) != 1 or SUBJECT not in scene.masks:
        raise UserError(f"{where} needs one {SUBJECT} in its prompt, and a mask for it")
    for word, path in scene.masks.items():
        if word not in scene.prompt.split():
            raise UserError(f"{where} has a mask for '{word}', which is not a word of its prompt")
        if open_image(path).size != open_image(scene.image).size:
            raise UserError(f"{where}: {path.name} and {scene.image.name} differ in size")
        if not np.asarray(open_image(path)).any():
            raise UserError(f"{where}: {path.name} is all black; leave out what is not to be seen")
    return scene


def read_mask(path: Path, side: int) -> Tensor:
    """(s, s) float32: the share of each place that the object covers, in [0, 1]."""
    grey = np.asarray(open_image(path).convert("L"), dtype=np.float32) / 255
    return F.adaptive_avg_pool2d(torch.from_numpy(grey)[None], side)[0]


def read_image(path: Path, side: int) -> Image.Image:
    """The image as the base reads it: a square of that side."""
    image = open_image(path)
    return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BICUBIC)

"""The example concepts of data/: a dog, a teddy bear and a barn, five images each on plain grounds."""

import random
from pathlib import Path

from scripts.toon.world.render import render
from scripts.toon.world.world import BELLIES, COLOURS, EYE, Look, Scene, place_subject
from utils.common.files import check_writable_folder
from utils.common.images import save_png

CREAM, PINK = BELLIES["white"], BELLIES["pink"]
EXAMPLES = {
    "dog": Look(
        kind="dog",
        colour="white",
        body=COLOURS["white"],
        belly=PINK,
        ear=COLOURS["purple"],
        eye=EYE,
        collar=COLOURS["red"],
        marking="spots",
        mark=COLOURS["purple"],
    ),
    "teddy_bear": Look(
        kind="teddy bear",
        colour="green",
        body=COLOURS["green"],
        belly=CREAM,
        ear=COLOURS["yellow"],
        eye=EYE,
        collar=COLOURS["red"],
        marking="none",
        mark=COLOURS["yellow"],
    ),
    "barn": Look(
        kind="barn",
        colour="orange",
        body=COLOURS["orange"],
        belly=CREAM,
        ear=COLOURS["purple"],
        eye=EYE,
        collar=None,
        marking="none",
        mark=COLOURS["purple"],
    ),
}


def plain_scenes(look: Look, seed: str, count: int = 5) -> list[Scene]:
    """Plain grounds, changing size and place; an animal also sits once and waves once."""
    rng = random.Random(seed)
    poses = ["standing"] * count
    if look.kind in ("dog", "cat", "rabbit", "pig"):
        poses[1], poses[3] = "sitting", "waving"
    return [place_subject(rng, Scene(look, pose=pose)) for pose in poses]


def draw_individual(look: Look, seed: str, folder: Path, side: int = 256) -> None:
    """Renders the `plain_scenes` of an individual into `folder`, those that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, scene in enumerate(plain_scenes(look, seed)):
        if not (folder / f"{i}.png").is_file():
            save_png(render(scene, side), folder / f"{i}.png", {})


def draw_examples(folder: Path, side: int) -> None:
    """Renders all examples into `folder`/<name>, anew."""
    check_writable_folder(folder, "output_dir")
    for name, look in EXAMPLES.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i, scene in enumerate(plain_scenes(look, f"examples/{name}")):
            save_png(render(scene, side), folder / name / f"{i}.png", {})
        print(f"saved {folder / name}")

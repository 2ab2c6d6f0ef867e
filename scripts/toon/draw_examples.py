"""Draw the example concepts of data/: a dog, a teddy bear and a barn, five pictures each on plain grounds."""

import argparse
import random
from pathlib import Path

from scripts.toon.render import render
from scripts.toon.world import Look, Scene

EXAMPLES = {
    "dog": Look(
        kind="dog",
        colour=None,
        body=(216, 164, 100),
        belly=(250, 238, 218),
        ear=(112, 62, 40),
        eye=(40, 30, 30),
        collar=(60, 104, 214),
        marking="patch",
        mark=(112, 62, 40),
    ),
    "teddy_bear": Look(
        kind="teddy bear",
        colour=None,
        body=(72, 150, 160),
        belly=(250, 232, 210),
        ear=(240, 200, 70),
        eye=(40, 30, 30),
        collar=(214, 60, 60),
        marking="none",
        mark=(240, 200, 70),
    ),
    "barn": Look(
        kind="barn",
        colour=None,
        body=(236, 178, 84),
        belly=(248, 240, 226),
        ear=(96, 66, 132),
        eye=(40, 30, 30),
        collar=None,
        marking="none",
        mark=(96, 66, 132),
    ),
}


def pictures(look: Look, seed: str, count: int = 5) -> list[Scene]:
    """Plain grounds, changing size and place; an animal also sits once and waves once."""
    rng = random.Random(seed)
    poses = ["standing"] * count
    if look.kind in ("dog", "cat", "rabbit", "pig"):
        poses[1], poses[3] = "sitting", "waving"
    return [
        Scene(
            look,
            pose=pose,
            x=rng.uniform(0.44, 0.56),
            ground=rng.uniform(0.05, 0.11),
            scale=rng.uniform(0.66, 0.76),
            faces_left=rng.random() < 0.5,
            seed=rng.randrange(2**31),
        )
        for pose in poses
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, default=Path("data"))
    parser.add_argument("--resolution", type=int, default=256)
    args = parser.parse_args()
    for name, look in EXAMPLES.items():
        folder = args.output_dir / name
        folder.mkdir(parents=True, exist_ok=True)
        for i, scene in enumerate(pictures(look, f"examples/{name}")):
            render(scene, args.resolution).save(folder / f"{i}.png")
        print(f"saved {folder}")


if __name__ == "__main__":
    main()

"""Draw the example concepts of data/: a dog, a teddy bear and a barn, five pictures each on plain grounds."""

import argparse
import random
from pathlib import Path

from scripts.toon.render import render
from scripts.toon.world import BELLIES, COLOURS, EYE, Look, Scene, place_subject

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


def pictures(look: Look, seed: str, count: int = 5) -> list[Scene]:
    """Plain grounds, changing size and place; an animal also sits once and waves once."""
    rng = random.Random(seed)
    poses = ["standing"] * count
    if look.kind in ("dog", "cat", "rabbit", "pig"):
        poses[1], poses[3] = "sitting", "waving"
    return [place_subject(rng, Scene(look, pose=pose)) for pose in poses]


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

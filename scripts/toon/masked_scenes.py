"""Renders of an example individual in situations, with the true mask of each object, for attention_maps.

python -m scripts.toon.masked_scenes --individual dog --output_dir outputs/scenes_dog
"""

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from scripts.toon.world.captions import describe, with_article
from scripts.toon.world.examples import EXAMPLES
from scripts.toon.world.render import render
from scripts.toon.world.world import ANIMALS, PLACES, WORN, Scene, place_subject, without_subject
from utils.common.errors import exit_on_user_error
from utils.common.files import check_writable_folder, write_json
from utils.common.flags import check_fields, option, parse, seed_option

if TYPE_CHECKING:  # imported inside the functions, so that flags are answered before torch loads
    from torch import Tensor

NEIGHBOURS = ("ball", "tree", "flower")  # stand beside the subject


@dataclass(frozen=True)
class Flags:
    individual: str = option("dog", "one of the examples in data/", choices=EXAMPLES)
    count: int = option(16, "scenes", minimum=1)
    size: int = option(64, "side of the images", minimum=16)
    seed: int = seed_option("seed of the situations")
    output_dir: Path = option(Path("outputs/scenes"), "folder of the images")

    def __post_init__(self) -> None:
        check_fields(self)


def situations(individual: str, count: int, seed: int) -> list[Scene]:
    """Scenes with a neighbour, a place and, of an animal, a worn thing; functions of the seed alone."""
    look, drawn = EXAMPLES[individual], []
    for i in range(count):
        rng = random.Random(f"masked/{individual}/{seed}/{i}")
        worn = rng.choice(WORN[1:]) if look.kind in ANIMALS else "nothing"
        scene = Scene(look, place=rng.choice(PLACES[1:]), worn=worn, neighbour=rng.choice(NEIGHBOURS))
        drawn.append(place_subject(rng, scene))
    return drawn


def masks_of(scene: Scene, size: int) -> dict[str, "Tensor"]:
    """Word of the prompt -> (size, size) of 0 and 1: where the render changes without it. A worn thing is no
    part of the subject."""
    from scripts.toon.models.training import subject_mask, to_pixels
    from utils.analysis.scenes import SUBJECT

    def where_differs(other: Scene) -> "Tensor":
        return subject_mask(to_pixels([scene], size), to_pixels([other], size), size)[0, 0]

    masks = {SUBJECT: where_differs(without_subject(scene))}
    masks[scene.neighbour] = where_differs(replace(scene, neighbour="nothing"))
    if scene.worn != "nothing":
        masks[scene.worn] = where_differs(replace(scene, worn="nothing"))
        masks[SUBJECT] = masks[SUBJECT] * (1 - masks[scene.worn])
    return {word: mask for word, mask in masks.items() if mask.any()}


def main(argv: list[str] | None = None) -> None:
    config = parse(Flags, argv, __doc__)
    check_writable_folder(config.output_dir, "output_dir")
    from utils.analysis.scenes import FILE, SUBJECT

    entries = []
    for i, scene in enumerate(situations(config.individual, config.count, config.seed)):
        config.output_dir.mkdir(parents=True, exist_ok=True)
        render(scene, config.size).save(config.output_dir / f"{i}.png")
        files = {}
        for word, mask in masks_of(scene, config.size).items():
            files[word] = f"{i}-{'subject' if word == SUBJECT else word}.png"
            Image.fromarray((mask * 255).byte().numpy()).save(config.output_dir / files[word])
        prompt = with_article(f"a photo of a {describe(scene, SUBJECT)}")
        entries.append({"image": f"{i}.png", "prompt": prompt, "masks": files})
    kind = EXAMPLES[config.individual].kind
    write_json(config.output_dir / FILE, {"class": kind, "scenes": entries})
    print(f"{config.count} scenes of a {kind} with their masks are in {config.output_dir}")


if __name__ == "__main__":
    exit_on_user_error(main)

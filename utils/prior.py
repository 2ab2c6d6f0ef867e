"""Class pictures for prior preservation, drawn from the base model where the user has too few."""

from collections.abc import Sequence
from pathlib import Path

from diffusers import StableDiffusionPipeline
from tqdm import tqdm

from utils.dataset import Concept
from utils.pictures import IMAGE_SUFFIXES
from utils.sampling import sample, save_png
from utils.seeds import seed_of


def missing_class_images(folder: Path, count: int) -> list[int]:
    """Which files class-i.png to add so that `folder`, the user's own pictures included, holds `count`."""
    present = {path.name for path in folder.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES}
    own = {_name(i) for i in range(count)}
    return [i for i in range(count - len(present - own)) if _name(i) not in present]


def generate_class_images(
    pipeline: StableDiffusionPipeline, concepts: Sequence[Concept], count: int, batch_size: int, seed: int
) -> None:
    """Fill every concept's class_data_dir up to `count` pictures of its class_prompt.

    DDIM, 50 steps, guidance 7.5, eta 0: diffusers' defaults, with which the official code draws them too.

    Picture i depends on (seed, i) alone, so an interrupted generation goes on where it stopped.
    Two processes never run this at once: call it under `main_process_first`.
    """
    for concept in concepts:
        folder = concept.class_data_dir
        numbers = missing_class_images(folder, count)
        if not numbers:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        prompts, seeds = (
            [concept.class_prompt] * len(numbers),
            [seed_of(seed, "class image", i) for i in numbers],
        )
        pictures = sample(pipeline, prompts, seeds, 50, 7.5, eta=0.0, batch_size=batch_size)
        bar = tqdm(zip(numbers, seeds, pictures, strict=True), "class pictures", total=len(numbers))
        for number, picture_seed, picture in bar:
            save_png(picture, folder / _name(number), {"prompt": concept.class_prompt, "seed": picture_seed})


def _name(number: int) -> str:
    return f"class-{number:05d}.png"

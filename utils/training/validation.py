"""Pictures of the concept while it is being learned."""

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from utils.images import save_png
from utils.sampling.grids import save_grid
from utils.sampling.images import sample

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def validate(
    pipeline: "StableDiffusionPipeline", prompt: str, count: int, seed: int, folder: Path
) -> list[Image.Image]:
    """Sample `prompt` as inference.py does (DDIM, 100 steps, guidance 6, eta 1) with seeds seed, seed + 1, …

    The pictures and their grid are kept in `folder`. The seeds are the same every time, so progress shows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seeds = range(seed, seed + count)
    pictures = list(sample(pipeline, [prompt] * count, seeds))
    for picture_seed, picture in zip(seeds, pictures, strict=True):
        save_png(picture, folder / f"seed-{picture_seed}.png", {"prompt": prompt, "seed": picture_seed})
    save_grid(pictures, [prompt], folder / "grid.png")
    return pictures

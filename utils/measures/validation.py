"""Images of the concept while it is being learned."""

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from tqdm import tqdm

from utils.common.images import save_png
from utils.sampling.grids import save_grid
from utils.sampling.images import sample

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def validate(
    pipeline: "DiffusionPipeline",
    prompt: str,
    count: int,
    seed: int,
    folder: Path,
    num_inference_steps: int,
    guidance_scale: float,
    eta: float,
) -> list[Image.Image]:
    """Sample `prompt` with DDIM and seeds seed, seed + 1, …: the same every time, so that progress shows.

    The images and their grid are kept in `folder`. A bar shows what is being drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seeds = range(seed, seed + count)
    drawn = sample(pipeline, [prompt] * count, seeds, num_inference_steps, guidance_scale, eta, batch_size=1)
    about = f"{count} of '{prompt[:60]}', {num_inference_steps} steps each"
    images = list(tqdm(drawn, about, total=count, leave=False, unit="image"))
    for image_seed, image in zip(seeds, images, strict=True):
        save_png(image, folder / f"seed-{image_seed}.png", {"prompt": prompt, "seed": image_seed})
    save_grid(images, [prompt], folder / "grid.png")
    return images

"""Images of the concept while it is being learned."""

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from tqdm import tqdm

from utils.sampling.grids import save_grid
from utils.sampling.images import draw

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
    jobs = [(prompt, each, folder / f"seed-{each}.png") for each in range(seed, seed + count)]
    settings = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, "eta": eta}
    drawn = draw(pipeline, jobs, {}, batch_size=1, **settings)
    title = f"{count} of '{prompt[:60]}', {num_inference_steps} steps each"
    images = list(tqdm(drawn, title, total=count, leave=False, unit="image"))
    save_grid(images, [prompt], folder / "grid.png")
    return images

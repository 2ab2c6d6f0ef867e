"""Prompts to images, one seed per image.

A trained concept in Python:

    pipeline = load_pipeline("data/toon/sd")           # utils.bases
    load_concept(pipeline, "ckpt/concept")             # utils.concepts.load
    image = next(sample(pipeline, ["a <new1> dog wearing headphones on the beach"], seeds=[0]))
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image

from utils.bases.base import Adjust, BaseModel
from utils.bases.families import as_base
from utils.bases.registry import Sampling
from utils.common.errors import in_memory
from utils.common.images import save_png
from utils.sampling.grids import slugs
from utils.sampling.settings import SCHEDULERS, check_scheduler


def make_scheduler(name: str, config: Mapping[str, Any]) -> diffusers.SchedulerMixin:
    """A fresh scheduler, a key of SCHEDULERS, over the noise levels of `config` (any scheduler's)."""
    check_scheduler(name, eta=0)
    class_name, overrides = SCHEDULERS[name]
    return getattr(diffusers, class_name).from_config(config, **overrides)


def half_beside_float32(base: BaseModel) -> torch.autocast:
    """Autocast for a UNet that trains in float32 while the rest is in half precision; else without effect.

    Its latents are float32, which an autoencoder in half precision would refuse.
    """
    half = base.pipeline.vae.dtype
    mixed = base.unet.dtype == torch.float32 and half != torch.float32
    return torch.autocast(base.device.type, half if mixed else None, enabled=mixed)


@torch.no_grad()
def sample(
    pipeline: "BaseModel | diffusers.DiffusionPipeline",
    prompts: Sequence[str],
    seeds: Sequence[int],
    num_inference_steps: int = Sampling.num_inference_steps,
    guidance_scale: float = Sampling.guidance_scale,
    eta: float = Sampling.eta,
    negative_prompt: str | None = None,
    batch_size: int = 4,
    scheduler: str = "ddim",
    adjust: Adjust | None = None,
) -> Iterator[Image.Image]:
    """Yields one image for each pair (prompts[i], seeds[i]), in order; the defaults are the paper's.

    Each image has its own CPU generator for its first latents and for every later draw, so it does not
    depend on the batch size, its neighbours or the device's generator: equal up to floating-point rounding.
    Another dtype draws other numbers. The pipeline keeps the scheduler. adjust(prompts, their text states):
    the states to use instead (utils/sampling/embedding_adjustment.py).
    Raises UserError as `check_scheduler` does.
    """
    check_scheduler(scheduler, eta)
    base = as_base(pipeline)
    base.pipeline.scheduler = make_scheduler(scheduler, base.pipeline.scheduler.config)
    painter = base.painter()
    pairs = list(zip(prompts, seeds, strict=True))
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        texts = [prompt for prompt, _ in batch]
        inputs = base.prompt_inputs(texts, negative_prompt, guidance_scale > 1, adjust)
        what = f"drawing {len(batch)} images at a time" if len(batch) > 1 else "drawing an image"
        with in_memory(what), half_beside_float32(base):
            images = painter(
                **inputs,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                eta=eta,
                generator=[torch.Generator().manual_seed(seed) for _, seed in batch],
            ).images
        yield from images


def jobs_of(prompts: Sequence[str], seeds: Sequence[int], folder: Path) -> list[tuple[str, int, Path]]:
    """For `draw`: every prompt with every seed, and the file that is named after both."""
    stems = slugs(prompts)
    return [
        (prompt, seed, folder / f"{stem}_{seed}.png")
        for prompt, stem in zip(prompts, stems, strict=True)
        for seed in seeds
    ]


def draw(
    pipeline: "BaseModel | diffusers.DiffusionPipeline",
    jobs: Iterable[tuple[str, int, Path]],
    about: Mapping[str, Any],
    **settings: Any,
) -> Iterator[Image.Image]:
    """Draws (prompt, seed, file) one after the other; yields each image when its file is written.

    The files are PNGs with prompt, seed and `about` as metadata; their folders exist. settings: of `sample`.
    """
    jobs = list(jobs)
    prompts, seeds = [prompt for prompt, *_ in jobs], [seed for _, seed, _ in jobs]
    images = sample(pipeline, prompts, seeds, **settings)
    for (prompt, seed, path), image in zip(jobs, images, strict=True):
        save_png(image, path, {"prompt": prompt, "seed": seed} | about)
        yield image

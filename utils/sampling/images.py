"""Prompts to pictures, one seed per picture, and the files they are kept in.

A trained concept in Python:

    pipeline = load_pipeline("data/toon/sd")           # utils.bases.sd
    load_concept(pipeline, "ckpt/concept")             # utils.concepts.load
    image = next(sample(pipeline, ["a <new1> dog wearing headphones on the beach"], seeds=[0]))
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
)
from PIL import Image

from utils.errors import UserError

# The second entry overrides the base's config: latents are not confined to [-1, 1], and PNDM's Runge-Kutta
# start is not what Stable Diffusion uses. A config written for another scheduler says neither.
SCHEDULERS: dict[str, tuple[type[SchedulerMixin], dict[str, bool]]] = {
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
    "dpm++": (DPMSolverMultistepScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
}


def check_scheduler(name: str, eta: float) -> None:
    """Raises UserError for an unknown scheduler, an eta that it would ignore, or one outside [0, 1]."""
    if name not in SCHEDULERS:
        raise UserError(f"unknown scheduler {name!r}; choose one of {', '.join(SCHEDULERS)}")
    if name != "ddim" and eta != 0:
        raise UserError(f"scheduler {name} ignores eta, and eta is {eta:g}; use ddim or set eta to 0")
    if not 0 <= eta <= 1:
        raise UserError(f"eta is {eta:g}; it must be in [0, 1]: 0 is deterministic DDIM, 1 adds DDPM's noise")


def check_sampling(
    seed: int, guidance_scale: float, negative_prompt: str | None, output_dir: Path, **counts: int
) -> None:
    """Raises UserError for settings that are wrong on their own. counts: flag -> a number of 1 or more."""
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"--{name} is {count}; it must be 1 or more")
    if seed < 0:
        raise UserError(f"--seed is {seed}; it must be 0 or more")
    if negative_prompt and guidance_scale <= 1:
        raise UserError(
            f"--guidance_scale is {guidance_scale:g}; --negative_prompt has an effect only above 1"
        )
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"--output_dir {output_dir} is a file; give a folder")


def make_scheduler(name: str, config: Mapping[str, Any]) -> SchedulerMixin:
    """A fresh scheduler, a key of SCHEDULERS, over the noise levels of `config` (any scheduler's)."""
    check_scheduler(name, eta=0)
    scheduler_class, overrides = SCHEDULERS[name]
    return scheduler_class.from_config(config, **overrides)


@torch.no_grad()
def sample(
    pipeline: DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    num_inference_steps: int = 100,
    guidance_scale: float = 6.0,
    eta: float = 1.0,
    negative_prompt: str | None = None,
    batch_size: int = 4,
    scheduler: str = "ddim",
) -> Iterator[Image.Image]:
    """Yields one picture for each pair (prompts[i], seeds[i]), in order; the defaults are the paper's.

    Each picture has its own CPU generator for its first latents and for every later draw, so it does not
    depend on the batch size, its neighbours or the device's generator: equal up to floating-point rounding.
    Another dtype draws other numbers. The pipeline keeps the scheduler.
    Raises UserError as `check_scheduler` does.
    """
    check_scheduler(scheduler, eta)
    pipeline.scheduler = make_scheduler(scheduler, pipeline.scheduler.config)
    # Prompts are encoded here, so that a float32 text encoder can stand before a half-precision UNet, as in
    # training; a pipeline that has the text encoder would cast the features back to its dtype.
    painter = type(pipeline)(**pipeline.components | {"text_encoder": None}, requires_safety_checker=False)
    painter.set_progress_bar_config(disable=True)
    pairs = list(zip(prompts, seeds, strict=True))
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        embeds, negative_embeds = pipeline.encode_prompt(
            [prompt for prompt, _ in batch],
            device=pipeline.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=guidance_scale > 1,
            negative_prompt=[negative_prompt or ""] * len(batch),
        )
        yield from painter(
            prompt_embeds=embeds.to(pipeline.unet.dtype),
            negative_prompt_embeds=None
            if negative_embeds is None
            else negative_embeds.to(pipeline.unet.dtype),
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            eta=eta,
            generator=[torch.Generator().manual_seed(seed) for _, seed in batch],
        ).images

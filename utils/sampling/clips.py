"""Prompts to short clips with AnimateDiff, one seed per clip, for a personalised Stable Diffusion.

A clip of a trained concept in Python:

    video = load_video_pipeline("data/toon/sd", "data/toon/motion_adapter", ["ckpt/dog"])
    settings = settings_of("data/toon/sd")
    frames = next(sample_clips(video, ["a <new1> dog jumping on the beach"], seeds=[0], **settings))
    save_gif(frames, "dog.gif", fps=8)                 # utils.sampling.clip_files

Shapes: F frames, H = W pixels; a clip is a list of F PIL images.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import MotionAdapter, UNetMotionModel
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from transformers.utils import logging as transformers_logging

from utils.bases.families import as_base, load_pipeline
from utils.bases.parts import check_weights
from utils.bases.pretrained import readable
from utils.bases.registry import ClipSampling, as_dict, base_row
from utils.common.errors import UserError, in_memory
from utils.concepts.load import load_concept
from utils.learners.registry import LEARNERS
from utils.sampling.images import check_scheduler, make_scheduler
from utils.sampling.motion_adapters import check_adapter, noise_levels

if TYPE_CHECKING:
    from diffusers import AnimateDiffPipeline, DiffusionPipeline

WINDOW = 16  # frames of a FreeNoise window: the length adapters are trained on
FREE_INIT_ROUNDS = 3
ROOMY = 16 * 2**30  # bytes of free GPU memory with which 16 frames of 512 px fit besides all of SD 1.5


def load_video_pipeline(
    base: str | Path,
    motion_adapter: str | Path,
    concepts: Sequence[str | Path] = (),
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    beta_schedule: str | None = None,
) -> "AnimateDiffPipeline":
    """The base model with its concepts merged and its frames joined by a motion adapter.

    base, motion_adapter: a folder or a Hub id each. concepts: folders or files, as `load_concept` takes them.
    device, dtype: as in `choose_device_dtype`. beta_schedule: as in `noise_levels`.
    Raises UserError, before a model loads, for an adapter that does not fit; then as `load_concept` does.
    """
    check_adapter(motion_adapter, base)
    pipeline = load_pipeline(base, device, dtype)
    for path in concepts:
        load_concept(pipeline, path)
    return animate(pipeline, motion_adapter, beta_schedule)


def animate(
    pipeline: "DiffusionPipeline", motion_adapter: str | Path, beta_schedule: str | None = None
) -> "AnimateDiffPipeline":
    """An AnimateDiffPipeline of the parts of `pipeline`, its UNet copied and motion modules put in.

    Concepts are to be merged before (`load_concept`): with diffusers' own processors the copy would raise.
    Raises UserError for weights that are missing or left over in the adapter's file.
    """
    base = as_base(pipeline)
    levels = noise_levels(pipeline.scheduler.config, motion_adapter, beta_schedule)
    with _quiet():
        with readable("motion adapter", motion_adapter):
            adapter, report = MotionAdapter.from_pretrained(
                motion_adapter, torch_dtype=base.unet.dtype, output_loading_info=True
            )
        check_weights(adapter, report, f"motion adapter {motion_adapter}")
        unet = UNetMotionModel.from_unet2d(base.unet, adapter).to(base.device)
    for learner in LEARNERS.values():
        if learner.hook_copy is not None:
            learner.hook_copy(base, unet)
    parts = dict(unet.named_parameters())
    lost = [name for name, value in base.unet.named_parameters() if not torch.equal(parts[name], value)]
    assert not lost, f"the motion UNet differs from the image UNet in {lost[:2]}"
    with _quiet():
        return base.video_pipeline(unet, adapter, make_scheduler("ddim", levels))


def settings_of(base: str) -> dict[str, Any]:
    """What suits a base model, by name or path, as keyword arguments of `sample_clips`."""
    return as_dict(base_row(base).clips)


def check_frames(num_frames: int, limit: int, free_noise: bool) -> None:
    """Raises UserError for a number of frames that an adapter of `limit` frames cannot draw this way."""
    window = min(WINDOW, limit)
    if num_frames < 2:
        raise UserError(f"num_frames is {num_frames}; a clip has 2 frames or more")
    if num_frames > limit and not free_noise:
        raise UserError(
            f"num_frames is {num_frames}, the motion adapter knows {limit}; give that many, or --free_noise"
        )
    if free_noise and num_frames <= window:
        raise UserError(f"num_frames is {num_frames}, within one window of {window}; leave --free_noise out")


@torch.no_grad()
def sample_clips(
    video: "AnimateDiffPipeline",
    prompts: Sequence[str],
    seeds: Sequence[int],
    num_frames: int = 16,
    num_inference_steps: int = ClipSampling.num_inference_steps,
    guidance_scale: float = ClipSampling.guidance_scale,
    eta: float = ClipSampling.eta,
    negative_prompt: str | None = ClipSampling.negative_prompt,
    scheduler: str = "ddim",
    free_noise: bool = False,
    window_stride: int = ClipSampling.window_stride,
    free_init: bool = False,
) -> Iterator[list[Image.Image]]:
    """Yields one clip, a list of num_frames images, for each pair (prompts[i], seeds[i]), in order.

    The defaults are ClassDiffusion's. Each clip has its own CPU generator, so it depends on no other clip.
    negative_prompt: has no effect at a guidance_scale of 1 or less.
    free_noise: windows of 16 frames along a longer clip (Qiu et al. 2023, arXiv 2310.15169), beginning
    window_stride frames apart.
    free_init: three rounds, each starting from the low frequencies of the last, for steadier clips in three
    times the time (Wu et al. 2023, arXiv 2312.07537).
    Raises UserError as `check_scheduler` and `check_frames` do.
    """
    check_scheduler(scheduler, eta)
    limit = video.motion_adapter.config.motion_max_seq_length
    check_frames(num_frames, limit, free_noise)
    video.scheduler = make_scheduler(scheduler, video.scheduler.config)
    if free_noise:
        video.enable_free_noise(context_length=min(WINDOW, limit), context_stride=window_stride)
    elif video.free_noise_enabled:
        video.disable_free_noise()
    if free_init:
        video.enable_free_init(num_iters=FREE_INIT_ROUNDS)
    else:
        video.disable_free_init()
    for prompt, seed in zip(prompts, seeds, strict=True):
        with in_memory(f"drawing {num_frames} frames"):
            frames = video(
                prompt,
                num_frames=num_frames,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                eta=eta,
                negative_prompt=negative_prompt,
                generator=torch.Generator().manual_seed(seed),
            ).frames[0]
        yield frames


def save_memory(video: "AnimateDiffPipeline", device: torch.device) -> list[str]:
    """On a GPU, switch on what its memory asks for; returns the names of what was. Elsewhere nothing.

    VAE slicing decodes the frames one by one and costs no time worth naming. CPU offload, which does, keeps
    one model on the GPU at a time: only with less than 16 GiB free.
    """
    if device.type != "cuda":
        return []
    video.vae.enable_slicing()
    free, _ = torch.cuda.mem_get_info(device)
    if free >= ROOMY:
        return ["VAE slicing"]
    video.enable_model_cpu_offload(device=device)
    return ["VAE slicing", f"CPU offload ({free / 2**30:.0f} GiB of GPU memory are free)"]


@contextmanager
def _quiet() -> Iterator[None]:
    """The libraries remark on a motion UNet's dtype and on a torchvision that nothing here uses."""
    before = [(log, log.get_verbosity()) for log in (diffusers_logging, transformers_logging)]
    for log, _ in before:
        log.set_verbosity_error()
    try:
        yield
    finally:
        for log, verbosity in before:
            log.set_verbosity(verbosity)

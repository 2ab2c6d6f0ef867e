"""Loads a Stable Diffusion and chooses where and in which precision it runs.

Shapes: B images or phrases, H = W pixels, h = w latent pixels, L tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKL
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from utils.errors import UserError
from utils.pretrained import read_config

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def choose_device_dtype(
    device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> tuple[torch.device, torch.dtype]:
    """Where to sample and in which precision; whatever is given wins.

    device: default CUDA, else Apple's MPS, else the CPU.
    dtype: a key of DTYPES or one of its torch types; default fp16 on CUDA, fp32 elsewhere (on a CPU half
    precision saves nothing, on MPS it is not dependable).
    Raises UserError for a device this machine lacks and for an unknown dtype.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device is None:
        device = next(name for name, here in present.items() if here)
    usable = [name for name, here in present.items() if here]
    try:
        device = torch.device(device)
    except RuntimeError:
        raise UserError(f"unknown device {device!r}; this machine has {', '.join(usable)}") from None
    if device.type not in usable:
        raise UserError(f"device {str(device)!r} is not available; this machine has {', '.join(usable)}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {str(device)!r} does not exist; the last is cuda:{torch.cuda.device_count() - 1}"
        )

    if dtype is None:
        dtype = "fp16" if device.type == "cuda" else "fp32"
    if dtype not in DTYPES and dtype not in DTYPES.values():
        raise UserError(f"unknown dtype {str(dtype)!r}; choose one of {', '.join(DTYPES)}")
    return device, DTYPES.get(dtype, dtype)


def check_base(base: str | Path, revision: str | None = None) -> None:
    """Raises UserError unless `base` is a StableDiffusionPipeline: a folder, or a Hub id (owner/name).

    Reads its model_index.json, which for a Hub id that is not cached is fetched: a few hundred bytes.
    """
    index = read_config(
        base, "base model", "model_index.json", "StableDiffusionPipeline.save_pretrained", revision
    )
    if index["_class_name"] != "StableDiffusionPipeline":
        raise UserError(f"base model {base} is a {index['_class_name']}; give a Stable Diffusion 1.x or 2.x")


def load_pipeline(
    base: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    variant: str | None = None,
) -> "StableDiffusionPipeline":
    """The base model as a stock pipeline: no safety checker, no progress bars, its own scheduler.

    Raises UserError as `check_base` and `choose_device_dtype` do.
    """
    check_base(base, revision)
    device, dtype = choose_device_dtype(device, dtype)
    with without_progress_bars():
        pipeline = _pipeline_class().from_pretrained(
            base,
            dtype=dtype,
            revision=revision,
            variant=variant,
            safety_checker=None,
            requires_safety_checker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def cast_frozen(modules: Sequence[nn.Module], dtype: torch.dtype) -> None:
    """Cast the parameters that do not learn, and only them (`to` casts all; diffusers' also warns of it)."""
    for module in modules:
        for parameter in module.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)


def tokenize(tokenizer: PreTrainedTokenizerBase, phrases: list[str]) -> Tensor:
    """Token ids (B, L), padded, and cut as the pipeline cuts prompts; L is the model's own length."""
    length = tokenizer.model_max_length
    if not phrases:
        return torch.empty(0, length, dtype=torch.long)
    encoded = tokenizer(
        phrases, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    return encoded.input_ids


@torch.no_grad()
def encode_images(vae: AutoencoderKL, pixels: Tensor, noise: Tensor) -> Tensor:
    """Latents drawn from the autoencoder's posterior: (mean + std * noise) * scaling_factor.

    pixels: (B, 3, H, W) in [-1, 1]; noise: (B, 4, h, w) standard normal.
    Returns (B, 4, h, w) in the autoencoder's dtype, about unit variance. The noise is an argument, so that
    a training step's randomness never depends on how the run got there.
    """
    posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    assert noise.shape == posterior.mean.shape, (noise.shape, posterior.mean.shape)
    latents = posterior.mean + posterior.std * noise.to(posterior.mean)  # (B, 4, h, w)
    return latents * vae.config.scaling_factor


def _pipeline_class() -> type["StableDiffusionPipeline"]:
    """Imported when needed: it takes seconds, and remarks on a torchvision that nothing here uses."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    from diffusers import StableDiffusionPipeline

    transformers_logging.set_verbosity(verbosity)
    return StableDiffusionPipeline


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Both libraries draw a bar per weights file; their switches are global, so put them back."""
    silenced = [log for log in (diffusers_logging, transformers_logging) if log.is_progress_bar_enabled()]
    for log in silenced:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in silenced:
            log.enable_progress_bar()

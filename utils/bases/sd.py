"""Loads a Stable Diffusion and chooses where and in which precision it runs.

Shapes: B images or phrases, H = W pixels, h = w latent pixels, L tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from utils.bases.devices import choose_device_dtype, without_progress_bars
from utils.bases.pretrained import read_config
from utils.errors import UserError

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


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

"""Stable Diffusion 1.x and 2.x: loaded as a stock pipeline, and the interface that training uses.

Shapes: B images, K phrases, C latent channels, H = W pixels, h = w latent pixels, L tokens, D text width.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.utils import logging as transformers_logging

from utils.bases.devices import choose_device_dtype, without_progress_bars
from utils.bases.parts import check_index, check_values, load_parts, read_tokenizer
from utils.bases.pretrained import read_config, readable
from utils.bases.text import feature_at, tokenize
from utils.learners.token_rows import ModifierTokens, check_tokens, check_within_limit, install

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def check_base(base: str | Path, revision: str | None = None) -> None:
    """Raises UserError unless `base` is a StableDiffusionPipeline: a folder, or a Hub id (owner/name).

    Reads its model_index.json, which for a Hub id that is not cached is fetched: a few hundred bytes.
    """
    index = read_config(
        base, "base model", "model_index.json", "StableDiffusionPipeline.save_pretrained", revision
    )
    check_index(index, base)


def load_pipeline(
    base: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    variant: str | None = None,
) -> "StableDiffusionPipeline":
    """The base model as a stock pipeline: no safety checker, no progress bars, its own scheduler.

    Raises UserError as `check_base`, `load_parts` and `choose_device_dtype` do.
    """
    check_base(base, revision)
    device, dtype = choose_device_dtype(device, dtype)
    with without_progress_bars(), readable("base model", base):
        pipeline = _pipeline_class().from_pretrained(
            base,
            **load_parts(base, dtype, revision, variant),
            dtype=dtype,
            revision=revision,
            variant=variant,
            safety_checker=None,
            requires_safety_checker=False,
        )
    check_values(pipeline, base)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


@torch.no_grad()
def posterior(vae: AutoencoderKL, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The posterior of images (B, 3, H, W) in [-1, 1]: mean and deviation, (B, C, h, w) each.

    Contiguous, though the autoencoder may be channels-last: the UNet takes on the layout of its input.
    """
    distribution = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    return distribution.mean.contiguous(), distribution.std.contiguous()


@torch.no_grad()
def encode_images(vae: AutoencoderKL, pixels: Tensor, noise: Tensor) -> Tensor:
    """Latents drawn from the autoencoder's posterior: (mean + std * noise) * scaling_factor.

    pixels: (B, 3, H, W) in [-1, 1]; noise: (B, 4, h, w) standard normal.
    Returns (B, 4, h, w) float32, about unit variance. The noise is an argument, so that
    a training step's randomness never depends on how the run got there.
    """
    return latents_of(vae, *posterior(vae, pixels), noise)


def latents_of(vae: AutoencoderKL, mean: Tensor, deviation: Tensor, noise: Tensor) -> Tensor:
    """(mean + deviation * noise) * scaling_factor, all (B, C, h, w); float32, whatever the autoencoder's.

    Half precision would round away the noise of the first timesteps: of .029 at t = 0 bfloat16 leaves 0.
    """
    assert noise.shape == mean.shape, (noise.shape, mean.shape)
    return (mean.float() + deviation.float() * noise.to(mean.device)) * vae.config.scaling_factor


def _pipeline_class() -> type["StableDiffusionPipeline"]:
    """Imported when needed: it takes seconds, and remarks on a torchvision that nothing here uses."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    from diffusers import StableDiffusionPipeline

    transformers_logging.set_verbosity(verbosity)
    return StableDiffusionPipeline


class StableDiffusion:
    """What training asks of a base model. Another family of models is another class with these names.

    tokenize(prompts) -> ids (B, …); encode(ids) -> states, a tuple of tensors (B, …); features(states, ids,
    …) -> [(K, D), …], one for each text feature that the semantic preservation loss compares;
    predict(noisy_latents, timesteps, states) -> (B, C, h, w); encode_images(pixels, noise) -> (B, C, h, w);
    add_tokens(…) puts the modifier tokens in place. unet, text_encoder, …: the modules that learners attach
    to.
    """

    def __init__(self, pipeline: "StableDiffusionPipeline", source: dict[str, Any]):
        """pipeline: of load_pipeline; frozen here. source: where its files are, for `original`."""
        self.pipeline, self.source = pipeline, source
        self.unet, self.vae, self.text_encoder = pipeline.unet, pipeline.vae, pipeline.text_encoder
        self.tokenizer = pipeline.tokenizer
        self.noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.rows: dict[str, nn.Parameter] = {}
        for module in (self.unet, self.vae, self.text_encoder):
            module.requires_grad_(False)

    @classmethod
    def load(
        cls, base: str, device: torch.device, revision: str | None, variant: str | None
    ) -> "StableDiffusion":
        """In float32, frozen."""
        pipeline = load_pipeline(base, device, "fp32", revision, variant)
        source = {"pretrained_model_name_or_path": base, "revision": revision, "variant": variant}
        return cls(pipeline, source)

    @classmethod
    def outline(cls, base: str, revision: str | None) -> "StableDiffusion":
        """The same from the configuration files alone: modules without numbers, for a plan."""
        own = {"pretrained_model_name_or_path": base, "revision": revision}
        with readable("base model", base):
            tokenizer = read_tokenizer(base, revision)
            with torch.device("meta"):
                text_encoder = CLIPTextModel(
                    CLIPTextConfig.from_pretrained(base, subfolder="text_encoder", revision=revision)
                )
                config = UNet2DConditionModel.load_config(**own, subfolder="unet")
                unet = UNet2DConditionModel.from_config(config)
                vae = AutoencoderKL.from_config(AutoencoderKL.load_config(**own, subfolder="vae"))
            scheduler = DDPMScheduler.from_config(DDPMScheduler.load_config(**own, subfolder="scheduler"))
            parts = SimpleNamespace(
                unet=unet, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler
            )
            check_values(parts, base)
            return cls(parts, own)

    def original(self, component: str) -> nn.Module:
        """A component as its files hold it, float32 on the CPU: "unet" or "text_encoder"."""
        if component == "unet":
            return UNet2DConditionModel.from_pretrained(**self.source, subfolder="unet")
        with without_progress_bars():
            base, variant = self.source["pretrained_model_name_or_path"], self.source.get("variant")
            revision = self.source.get("revision")
            return CLIPTextModel.from_pretrained(
                base, subfolder="text_encoder", revision=revision, variant=variant, dtype=torch.float32
            )

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @cached_property
    def latent_factor(self) -> int:
        """Pixels per latent, along one axis."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def coarsest_factor(self) -> int:
        """Pixels, along one axis, that the UNet's deepest layer sees as one."""
        return self.latent_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)

    @property
    def latent_channels(self) -> int:
        return self.vae.config.latent_channels

    @property
    def resolution(self) -> int:
        """The side of the images it was made for, in pixels."""
        return self.unet.config.sample_size * self.latent_factor

    @property
    def trainable(self) -> dict[str, nn.Module]:
        """The modules that learners attach to and gradients pass through."""
        return {"text_encoder": self.text_encoder, "unet": self.unet}

    @property
    def frozen_in_half(self) -> list[nn.Module]:
        """Modules whose frozen parts may be in half precision. The text encoder stays float32."""
        return [self.vae, self.unet]

    def save_memory(self, one_by_one: bool = False) -> None:
        """Gradient checkpointing: activations are computed again in the backward pass.

        one_by_one: images are encoded one at a time, the result differs by rounding.
        """
        if one_by_one:
            self.vae.enable_slicing()
        self.unet.enable_gradient_checkpointing()
        self.unet.train()  # it has no dropout; checkpointing asks for the mode

    def check_tokens(self, tokens: Sequence[str], words: Sequence[str], start: str) -> None:
        """Raises UserError for tokens or first words that `add_tokens` would refuse."""
        check_tokens(self.tokenizer, tokens, words, start)

    def add_tokens(self, tokens: Sequence[str], words: Sequence[str], start: str) -> None:
        """Put K modifier tokens in place, each starting from its word (utils/learners/token_rows.py).

        Their rows, (K, D) for each text encoder by name, are then `rows`; frozen until a learner takes them.
        """
        installed: ModifierTokens = install(self.text_encoder, self.tokenizer, tokens, words, start)
        self.rows = {"rows": installed.rows.requires_grad_(False)}

    def tokenize(self, prompts: list[str]) -> Tensor:
        """(B, L) token ids on the base's device."""
        return tokenize(self.tokenizer, prompts).to(self.device)

    def token_ids(self, tokens: Sequence[str]) -> Tensor:
        """(K,) ids of tokens on the base's device."""
        return torch.tensor(
            [self.tokenizer.convert_tokens_to_ids(token) for token in tokens], device=self.device
        )

    def encode(self, ids: Tensor) -> tuple[Tensor]:
        """(B, L) ids -> ((B, L, D),), after the final layer norm; float32, for SPL lives near 1e-3."""
        with torch.autocast(ids.device.type, enabled=False):
            return (self.text_encoder(ids).last_hidden_state,)

    def features(self, states: tuple[Tensor], ids: Tensor, modifiers: Tensor | None = None) -> list[Tensor]:
        """[(K, D)]: the text feature at EOS, or with `modifiers` (K,) ids at each phrase's modifier token.

        One for each cross-attention layer where layers have their own states (utils/learners/layer_rows.py).
        """
        place = self.tokenizer.eos_token_id if modifiers is None else modifiers
        return [feature_at(layer, ids, place) for layer in states[0].split(ids.shape[1], dim=1)]

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, states: tuple[Tensor]) -> Tensor:
        """What the UNet predicts, (B, C, h, w): the noise or the velocity. Both inputs take its dtype."""
        dtype = self.unet.dtype
        return self.unet(noisy_latents.to(dtype), timesteps, states[0].to(dtype)).sample

    def encode_images(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> latents (B, C, h, w); see `encode_images`."""
        return encode_images(self.vae, pixels, noise)

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [-1, 1] -> mean and deviation of the latents, (B, C, h, w) each."""
        return posterior(self.vae, pixels)

    def latents_of(self, mean: Tensor, deviation: Tensor, noise: Tensor) -> Tensor:
        """Latents (B, C, h, w) from a posterior and standard normal noise."""
        return latents_of(self.vae, mean, deviation, noise)

    def within_limit(self, prompt: str, tokens: Sequence[str]) -> None:
        """Raises UserError when the tokenizer would cut one of the tokens off a long prompt."""
        check_within_limit(self.tokenizer, prompt, tokens)

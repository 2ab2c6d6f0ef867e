"""Stable Diffusion 1.x and 2.x, and what families of its making share.

Shapes: B images, K phrases, C latent channels, H = W pixels, h = w latent pixels, L tokens, D text width.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig
from transformers.utils import logging as transformers_logging

from utils.bases.attention import cross_attention_layers
from utils.bases.base import Adjust, BaseModel, States, TextEncoder
from utils.bases.devices import without_progress_bars
from utils.bases.digest import base_digest
from utils.bases.parts import WITH_WEIGHTS, check_values, load_parts, read_tokenizer
from utils.bases.pretrained import readable
from utils.bases.single_file.configuration import configuration_of
from utils.bases.single_file.convert import folder_of
from utils.bases.text import feature_at, tokenize
from utils.learners.token_rows import check_tokens, check_within_limit, install

if TYPE_CHECKING:
    from diffusers import AnimateDiffPipeline, DiffusionPipeline, MotionAdapter, SchedulerMixin
    from transformers import PreTrainedTokenizerBase


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


def pipeline_class(name: str) -> "type[DiffusionPipeline]":
    """A stock pipeline. Imported when needed: it takes seconds, and remarks on a torchvision that nothing
    here uses."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    import diffusers

    found = getattr(diffusers, name)
    transformers_logging.set_verbosity(verbosity)
    return found


class StableDiffusion(BaseModel):
    """Stable Diffusion 1.x and 2.x. Its text states are one tensor (B, L, D), after the final layer norm."""

    title = "Stable Diffusion 1.x or 2.x"
    pipeline_name: ClassVar[str] = "StableDiffusionPipeline"
    unneeded: ClassVar[dict[str, Any]] = {"safety_checker": None, "requires_safety_checker": False}
    parts = {
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL",),
        "text_encoder": ("CLIPTextModel",),
        "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    }

    def __init__(self, pipeline: "DiffusionPipeline", source: dict[str, Any] | None = None):
        """source: where its files are, for `original`; None for a pipeline that was not opened here."""
        self.pipeline, self.source = pipeline, source
        self.rows: dict[str, nn.Parameter] = {}

    @classmethod
    def open(
        cls,
        base: str | Path,
        device: torch.device,
        dtype: torch.dtype,
        revision: str | None = None,
        variant: str | None = None,
    ) -> Self:
        """Raises UserError as `folder_of`, `load_part` and `check_values` do."""
        base = folder_of(base)
        with without_progress_bars(), readable("base model", base):
            pipeline = pipeline_class(cls.pipeline_name).from_pretrained(
                base,
                **load_parts(cls.parts, base, dtype, revision, variant),
                dtype=dtype,
                revision=revision,
                variant=variant,
                **cls.unneeded,
            )
        check_values(pipeline, base)
        pipeline.set_progress_bar_config(disable=True)
        source = {"pretrained_model_name_or_path": base, "revision": revision, "variant": variant}
        return cls(pipeline.to(device), source)

    @classmethod
    def outline(cls, base: str, revision: str | None = None) -> Self:
        """Modules without numbers."""
        base = configuration_of(base)
        own = {"pretrained_model_name_or_path": base, "revision": revision}
        with readable("base model", base):
            parts: dict[str, Any] = {
                name: read_tokenizer(base, revision, name)
                for name in cls.parts
                if name.startswith("tokenizer")
            }
            with torch.device("meta"):
                for name in cls.parts:
                    if name.startswith("text_encoder"):
                        config = CLIPTextConfig.from_pretrained(base, subfolder=name, revision=revision)
                        parts[name] = WITH_WEIGHTS[name](config)
                config = UNet2DConditionModel.load_config(**own, subfolder="unet")
                parts["unet"] = UNet2DConditionModel.from_config(config)
                config = AutoencoderKL.load_config(**own, subfolder="vae")
                parts["vae"] = AutoencoderKL.from_config(config)
            scheduler = DDPMScheduler.from_config(DDPMScheduler.load_config(**own, subfolder="scheduler"))
            outlined = SimpleNamespace(**parts, scheduler=scheduler)
            check_values(outlined, base)
        return cls(outlined, own).freeze()

    @classmethod
    def tokenizers(
        cls, base: str | Path, revision: str | None = None
    ) -> "tuple[PreTrainedTokenizerBase, ...]":
        base = configuration_of(base)
        return tuple(
            read_tokenizer(base, revision, name) for name in cls.parts if name.startswith("tokenizer")
        )

    def original(self, component: str) -> nn.Module:
        """Raises AssertionError for a pipeline that was not opened here."""
        assert self.source is not None, "a pipeline that was not opened from files has no original"
        if component == "unet":
            return UNet2DConditionModel.from_pretrained(**self.source, subfolder="unet")
        with without_progress_bars():
            base, variant = self.source["pretrained_model_name_or_path"], self.source.get("variant")
            revision = self.source.get("revision")
            return WITH_WEIGHTS[component].from_pretrained(
                base, subfolder=component, revision=revision, variant=variant, dtype=torch.float32
            )

    def fingerprint(self) -> str | None:
        return base_digest(self.unet, *(encoder.model for encoder in self.encoders))

    def freeze(self) -> Self:
        self.noise_scheduler  # noqa: B018 of the scheduler that the files name, which sampling replaces
        return super().freeze()

    @cached_property
    def noise_scheduler(self) -> DDPMScheduler:
        return DDPMScheduler.from_config(self.pipeline.scheduler.config)

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {
            name: getattr(self.pipeline, name)
            for name in self.parts
            if name in WITH_WEIGHTS and hasattr(self.pipeline, name)
        }

    @property
    def encoders(self) -> tuple[TextEncoder, ...]:
        return (TextEncoder("text_encoder", self.pipeline.text_encoder, self.pipeline.tokenizer),)

    @property
    def unet(self) -> UNet2DConditionModel:
        return self.pipeline.unet

    @property
    def vae(self) -> AutoencoderKL:
        return self.pipeline.vae

    def frozen_in_half(self, dtype: torch.dtype) -> list[nn.Module]:
        """The text encoder stays float32."""
        return [self.vae, self.unet]

    @cached_property
    def latent_factor(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def coarsest_factor(self) -> int:
        return self.latent_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)

    @property
    def latent_channels(self) -> int:
        return self.vae.config.latent_channels

    @property
    def resolution(self) -> int:
        return self.unet.config.sample_size * self.latent_factor

    def save_memory(self, one_by_one: bool = False) -> None:
        """Gradient checkpointing. one_by_one: the latents then differ by rounding."""
        if one_by_one:
            self.vae.enable_slicing()
        self.unet.enable_gradient_checkpointing()
        self.unet.train()  # it has no dropout; checkpointing asks for the mode

    def cross_attentions(self) -> dict[str, nn.Module]:
        return {name: self.unet.get_submodule(name) for name in cross_attention_layers(self.unet)}

    def check_tokens(self, tokens: Sequence[str], words: Sequence[str], start: str) -> None:
        for encoder in self.encoders:
            check_tokens(encoder.tokenizer, tokens, words, start)

    def add_tokens(self, tokens: Sequence[str], words: Sequence[str], start: str) -> None:
        """See utils/learners/token_rows.py."""
        self.rows = {
            each.rows: install(each.model, each.tokenizer, tokens, words, start).rows.requires_grad_(False)
            for each in self.encoders
        }

    def tokenize(self, prompts: list[str]) -> Tensor:
        """(B, L)."""
        return tokenize(self.tokenizer, prompts).to(self.device)

    def token_ids(self, tokens: Sequence[str]) -> Tensor:
        return torch.tensor(
            [self.tokenizer.convert_tokens_to_ids(token) for token in tokens], device=self.device
        )

    def within_limit(self, prompt: str, tokens: Sequence[str]) -> None:
        for encoder in self.encoders:
            check_within_limit(encoder.tokenizer, prompt, list(tokens))

    def encode(self, ids: Tensor) -> States:
        """(B, L) -> ((B, L, D),), after the final layer norm; float32, for SPL lives near 1e-3."""
        with torch.autocast(ids.device.type, enabled=False):
            return (self.text_encoder(ids).last_hidden_state,)

    def features(self, states: States, ids: Tensor, modifiers: Tensor | None = None) -> list[Tensor]:
        """One feature, or one for each cross-attention layer where layers have their own states
        (utils/learners/layer_rows.py)."""
        place = self.tokenizer.eos_token_id if modifiers is None else modifiers
        return [feature_at(layer, ids, place) for layer in states[0].split(ids.shape[1], dim=1)]

    def predict(
        self, noisy_latents: Tensor, timesteps: Tensor, states: States, sizes: Tensor | None = None
    ) -> Tensor:
        """Both inputs take the UNet's dtype."""
        dtype = self.unet.dtype
        return self.unet(noisy_latents.to(dtype), timesteps, states[0].to(dtype)).sample

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return posterior(self.vae, pixels)

    def latents_of(self, mean: Tensor, deviation: Tensor, noise: Tensor) -> Tensor:
        return latents_of(self.vae, mean, deviation, noise)

    def painter(self) -> "DiffusionPipeline":
        """Without text encoders. Prompts are encoded by `prompt_inputs`, so that a float32 text encoder can
        stand before a half-precision UNet, as in training; a pipeline that has one would cast its states."""
        without = {encoder.name: None for encoder in self.encoders}
        painter = type(self.pipeline)(**self.unneeded | self.pipeline.components | without)
        painter.set_progress_bar_config(disable=True)
        return painter

    def prompt_inputs(
        self,
        prompts: Sequence[str],
        negative_prompt: str | None = None,
        guided: bool = False,
        adjust: Adjust | None = None,
    ) -> dict[str, Tensor | None]:
        """Encoded by the stock pipeline, in the text encoder's dtype, then in the UNet's."""
        states, negative = self.pipeline.encode_prompt(
            list(prompts),
            device=self.pipeline.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=guided,
            negative_prompt=[negative_prompt or ""] * len(prompts),
        )
        states = adjust(prompts, states) if adjust else states
        negative = negative.to(self.unet.dtype) if negative is not None else None
        return {"prompt_embeds": states.to(self.unet.dtype), "negative_prompt_embeds": negative}

    def text_states(self, prompts: Sequence[str]) -> Tensor:
        """As the pipeline encodes them, in the text encoder's dtype."""
        return self.pipeline.encode_prompt(list(prompts), self.pipeline.device, 1, False)[0]

    def video_pipeline(
        self, unet: Any, motion_adapter: "MotionAdapter", scheduler: "SchedulerMixin"
    ) -> "AnimateDiffPipeline":
        video = pipeline_class("AnimateDiffPipeline")(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=unet,
            motion_adapter=motion_adapter,
            scheduler=scheduler,
        )
        video.set_progress_bar_config(disable=True)
        return video

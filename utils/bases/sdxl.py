"""Stable Diffusion XL: two text encoders, a pooled text embedding, and the sizes of every image.

Shapes: B images or prompts, L tokens, D = D₁ + D₂ text width (768 + 1280), P width of the pooled embedding
(1280), h, w latent pixels.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from utils.bases.base import Adjust, BaseModel, States, TextEncoder
from utils.bases.sd import StableDiffusion
from utils.bases.text import feature_at, tokenize

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class StableDiffusionXL(StableDiffusion):
    """Its text states are the context (B, L, D), both encoders' last hidden states but one side by side,
    without a final norm, and the second encoder's pooled embedding (B, P).

    Prompts are pooled at EOS. The published configurations say `eos_token_id` 2, at which transformers pools
    at the largest id: a modifier token, where a prompt has one. So the models are given the tokenizers' own.
    """

    title = "Stable Diffusion XL"
    pipeline_name: ClassVar[str] = "StableDiffusionXLPipeline"
    unneeded: ClassVar[dict[str, Any]] = {"add_watermarker": False}
    parts = StableDiffusion.parts | {
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
    }
    feature_names = ("te1", "te2", "pooled")

    def __init__(self, pipeline: "DiffusionPipeline", source: dict[str, Any] | None = None):
        super().__init__(pipeline, source)
        for encoder in self.encoders:
            pool_at_eos(encoder)

    @classmethod
    def open(cls, *args: Any, **kwargs: Any) -> Self:
        """As `StableDiffusion.open`; the autoencoder decodes latents of any precision."""
        opened = super().open(*args, **kwargs)
        first = opened.vae.decoder if opened.vae.post_quant_conv is None else opened.vae.post_quant_conv
        first.register_forward_pre_hook(_to_own_dtype)  # the stock pipeline does not cast to float32
        return opened

    @property
    def encoders(self) -> tuple[TextEncoder, ...]:
        second = TextEncoder(
            "text_encoder_2", self.pipeline.text_encoder_2, self.pipeline.tokenizer_2, "rows_2"
        )
        return (*super().encoders, second)

    def frozen_in_half(self, dtype: torch.dtype) -> list[nn.Module]:
        """The text encoders stay float32, and an autoencoder that overflows in float16 does there."""
        keep_vae = dtype == torch.float16 and self.vae.config.force_upcast
        return [self.unet] if keep_vae else [self.vae, self.unet]

    def tokenize(self, prompts: list[str]) -> Tensor:
        """(B, 2, L): the tokenizers differ in their padding."""
        ids = [tokenize(encoder.tokenizer, prompts) for encoder in self.encoders]
        return torch.stack(ids, dim=1).to(self.device)

    def encode(self, ids: Tensor) -> States:
        """(B, 2, L) -> ((B, L, D), (B, P)); float32, for SPL lives near 1e-3.

        An empty caption gives zeros where sampling takes them for no prompt (`zeros_for_no_prompt`).
        """
        states = self._encode(ids)
        if not self.zeros_for_no_prompt:
            return states
        empty = ids[:, 0, 1] == self.tokenizer.eos_token_id  # (B,)
        return tuple(each.masked_fill(empty.view(-1, *[1] * (each.ndim - 1)), 0) for each in states)

    @property
    def zeros_for_no_prompt(self) -> bool:
        """Whether sampling's unconditional states are zeros; so the published configurations say."""
        config = getattr(self.pipeline, "config", {})  # an outline has none
        return config.get("force_zeros_for_empty_prompt", True)

    def _encode(self, ids: Tensor) -> States:
        with torch.autocast(ids.device.type, enabled=False):
            first, second = (
                encoder.model(ids[:, number], output_hidden_states=True)
                for number, encoder in enumerate(self.encoders)
            )
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds

    def features(self, states: States, ids: Tensor, modifiers: Tensor | None = None) -> list[Tensor]:
        """(B, D₁), (B, D₂) and (B, P): both encoders' states at EOS, and the pooled embedding. With
        `modifiers` the states are those at the token; the pooled embedding is at EOS always."""
        place = self.tokenizer.eos_token_id if modifiers is None else modifiers
        parts = states[0].split([encoder.width for encoder in self.encoders], dim=-1)
        return [*(feature_at(part, ids[:, 0], place) for part in parts), states[1]]

    def predict(
        self, noisy_latents: Tensor, timesteps: Tensor, states: States, sizes: Tensor | None = None
    ) -> Tensor:
        """sizes: (B, 6) or None for whole images of the latents' own size."""
        dtype = self.unet.dtype
        if sizes is None:
            sizes = self.whole(noisy_latents)
        # Sizes stay float32: bfloat16 would round 1023 to 1024.
        added = {"text_embeds": states[1].to(dtype), "time_ids": sizes.to(self.device, torch.float32)}
        context = states[0].to(dtype)
        return self.unet(noisy_latents.to(dtype), timesteps, context, added_cond_kwargs=added).sample

    def whole(self, latents: Tensor) -> Tensor:
        """(B, 6) time ids of uncut images: original size, no crop, target size."""
        height, width = (side * self.latent_factor for side in latents.shape[2:])
        return torch.tensor([[height, width, 0, 0, height, width]]).repeat(len(latents), 1)

    def prompt_inputs(
        self,
        prompts: Sequence[str],
        negative_prompt: str | None = None,
        guided: bool = False,
        adjust: Adjust | None = None,
    ) -> dict[str, Tensor | None]:
        """Without a negative prompt the unconditional states are those of `zeros_for_no_prompt`."""
        dtype = self.unet.dtype
        context, pooled = self._encode(self.tokenize(list(prompts)))
        context = adjust(prompts, context) if adjust else context
        negative = [None, None]
        if guided:
            encode = self._encode if negative_prompt else self.encode
            negative = list(encode(self.tokenize([negative_prompt or ""] * len(prompts))))
        names = ("prompt_embeds", "pooled_prompt_embeds")
        given = dict(zip(names, (context, pooled), strict=True))
        given |= {f"negative_{name}": each for name, each in zip(names, negative, strict=True)}
        return {name: each if each is None else each.to(dtype) for name, each in given.items()}

    def latents_of(self, mean: Tensor, deviation: Tensor, noise: Tensor) -> Tensor:
        """For an autoencoder with them, less `latents_mean` and over `latents_std`."""
        latents, config = super().latents_of(mean, deviation, noise), self.vae.config
        if config.get("latents_mean") is None or config.get("latents_std") is None:
            return latents
        shift, scale = (
            torch.tensor(each).view(1, -1, 1, 1).to(latents)
            for each in (config.latents_mean, config.latents_std)
        )
        return (latents - shift * config.scaling_factor) / scale

    def text_states(self, prompts: Sequence[str]) -> Tensor:
        return BaseModel.text_states(self, prompts)

    def video_pipeline(self, unet: Any, motion_adapter: Any, scheduler: Any) -> "DiffusionPipeline":
        return BaseModel.video_pipeline(self, unet, motion_adapter, scheduler)


def pool_at_eos(encoder: TextEncoder) -> None:
    """Lets the model pool at the tokenizer's EOS, now and where its configuration is saved."""
    eos = encoder.tokenizer.eos_token_id
    encoder.model.config.eos_token_id = eos
    for module in encoder.model.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = eos


def _to_own_dtype(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (args[0].to(next(module.parameters()).dtype),)

"""The interface of a base model, for training and sampling. A family of models is a subclass in a file of
its own and a row of FAMILIES (utils/bases/families.py); nothing outside this folder names a family.

Shapes: B prompts or images, K modifier tokens, C latent channels, H × W pixels, h × w latent pixels,
L tokens, D text width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from utils.common.errors import UserError

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

States = tuple[Tensor, ...]  # what `encode` gives: (B, …) each; the first, (B, L, D), is what K and V read
Adjust = Callable[[Sequence[str], Tensor], Tensor]  # prompts and their text states -> the states to use


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder and its tokenizer. name: of the pipeline's component. rows: what the parameter of its
    modifier tokens is called; "rows" for the first."""

    name: str
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    rows: str = "rows"

    @property
    def width(self) -> int:
        return self.model.config.hidden_size


class BaseModel(ABC):
    """A base model. pipeline: the stock pipeline of its parts, or their outline.

    title: how errors name the family. parts: component -> the classes that model_index.json may name.
    rows: parameter -> the modifier tokens' rows (K, D), once `add_tokens` has put them in place.
    """

    title: ClassVar[str]
    parts: ClassVar[Mapping[str, tuple[str, ...]]]

    pipeline: "DiffusionPipeline"
    noise_scheduler: "DDPMScheduler"
    rows: dict[str, nn.Parameter]

    # Opening

    @classmethod
    @abstractmethod
    def open(
        cls,
        base: str | Path,
        device: torch.device,
        dtype: torch.dtype,
        revision: str | None = None,
        variant: str | None = None,
    ) -> Self:
        """The model whose folder or Hub id is `base`, whole and finite.

        Raises UserError for damaged files.
        """

    @classmethod
    @abstractmethod
    def outline(cls, base: str, revision: str | None = None) -> Self:
        """The same from the configuration files alone: modules without numbers, for checks and plans."""

    @classmethod
    @abstractmethod
    def tokenizers(
        cls, base: str | Path, revision: str | None = None
    ) -> "tuple[PreTrainedTokenizerBase, ...]":
        """The tokenizers of the text encoders, in order. Raises UserError for damaged files."""

    @abstractmethod
    def original(self, component: str) -> nn.Module:
        """A component as its files hold it, float32 on the CPU; of a base that was opened from files."""

    @abstractmethod
    def fingerprint(self) -> str | None:
        """A short digest of the weights by which a concept knows its base; None where precision is lost."""

    def freeze(self) -> Self:
        """Nothing trains until a learner attaches."""
        for module in self.modules.values():
            module.requires_grad_(False)
        return self

    # Parts

    @property
    @abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """Every component with weights, by its name in the pipeline."""

    @property
    @abstractmethod
    def encoders(self) -> tuple[TextEncoder, ...]:
        """The text encoders, in the order in which their states and rows stand side by side."""

    @property
    @abstractmethod
    def unet(self) -> "UNet2DConditionModel":
        """The denoiser."""

    @property
    def trainable(self) -> dict[str, nn.Module]:
        """The modules that learners attach to and gradients pass through."""
        return {encoder.name: encoder.model for encoder in self.encoders} | {"unet": self.unet}

    @abstractmethod
    def frozen_in_half(self, dtype: torch.dtype) -> list[nn.Module]:
        """Modules whose frozen parts may be of this half precision in training."""

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device  # the UNet's own property walks through all its modules

    @property
    @abstractmethod
    def latent_factor(self) -> int:
        """Pixels per latent, along one axis."""

    @property
    @abstractmethod
    def coarsest_factor(self) -> int:
        """Pixels, along one axis, that the denoiser's deepest layer sees as one."""

    @property
    @abstractmethod
    def latent_channels(self) -> int: ...

    @property
    @abstractmethod
    def resolution(self) -> int:
        """The side of the images it was made for, in pixels."""

    @abstractmethod
    def save_memory(self, one_by_one: bool = False) -> None:
        """Compute activations again in the backward pass. one_by_one: encode images one at a time, too."""

    # What learners attach to

    @abstractmethod
    def cross_attentions(self) -> dict[str, nn.Module]:
        """The layers in which the denoiser reads the text, by name, in the order of their execution."""

    def kv_projections(self) -> dict[str, nn.Linear]:
        """Their key and value projections, by name."""
        return {
            f"{name}.{key}": getattr(attention, key)
            for name, attention in self.cross_attentions().items()
            for key in ("to_k", "to_v")
        }

    # Text

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The first text encoder's tokenizer, which says how long a prompt may be and where its words are."""
        return self.encoders[0].tokenizer

    @property
    def text_encoder(self) -> "PreTrainedModel":
        """The only text encoder. Raises UserError for a base with several."""
        if len(self.encoders) > 1:
            raise UserError(f"a {self.title} has {len(self.encoders)} text encoders, and this needs one")
        return self.encoders[0].model

    @abstractmethod
    def check_tokens(self, tokens: Sequence[str], words: Sequence[str], start: str) -> None:
        """Raises UserError for tokens or first words that `add_tokens` would refuse."""

    @abstractmethod
    def add_tokens(self, tokens: Sequence[str], words: Sequence[str], start: str) -> None:
        """Put K modifier tokens in place, each starting from its word; their rows are then `rows`, frozen."""

    @abstractmethod
    def tokenize(self, prompts: list[str]) -> Tensor:
        """Token ids (B, …) on the base's device."""

    @abstractmethod
    def token_ids(self, tokens: Sequence[str]) -> Tensor:
        """(K,) ids of tokens on the base's device."""

    @abstractmethod
    def within_limit(self, prompt: str, tokens: Sequence[str]) -> None:
        """Raises UserError when a tokenizer would cut one of the tokens off a long prompt."""

    @abstractmethod
    def encode(self, ids: Tensor) -> States:
        """Ids (B, …) of `tokenize` -> text states, float32 where SPL needs it."""

    @abstractmethod
    def features(self, states: States, ids: Tensor, modifiers: Tensor | None = None) -> list[Tensor]:
        """The text features that the semantic preservation loss compares, (B, D) each: at EOS, or with
        `modifiers`, (B,) ids, at each phrase's modifier token."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        """What the log calls each of several features; empty where there is one."""
        return ()

    # Diffusion

    @abstractmethod
    def predict(
        self, noisy_latents: Tensor, timesteps: Tensor, states: States, sizes: Tensor | None = None
    ) -> Tensor:
        """What the denoiser predicts, (B, C, h, w): the noise or the velocity.

        sizes: (B, 6), see `time_ids` (utils/data/dataset.py), for families conditioned on them; None:
        whole images of the latents' own size.
        """

    @abstractmethod
    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [-1, 1] -> mean and deviation of the latents, (B, C, h, w) each."""

    @abstractmethod
    def latents_of(self, mean: Tensor, deviation: Tensor, noise: Tensor) -> Tensor:
        """Latents (B, C, h, w) from a posterior and standard normal noise."""

    def encode_images(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> latents (B, C, h, w), drawn from the posterior by the noise."""
        return self.latents_of(*self.posterior(pixels), noise)

    # Sampling

    @abstractmethod
    def painter(self) -> "DiffusionPipeline":
        """A stock pipeline that draws from text states, for `prompt_inputs`; it shares this one's parts."""

    @abstractmethod
    def prompt_inputs(
        self,
        prompts: Sequence[str],
        negative_prompt: str | None = None,
        guided: bool = False,
        adjust: Adjust | None = None,
    ) -> dict[str, Tensor | None]:
        """Keyword arguments of the painter's call: the text states of the prompts, and with `guided` those of
        the negative prompt. adjust: what turns the prompts' states into those to use."""

    def text_states(self, prompts: Sequence[str]) -> Tensor:
        """(B, L, D), what keys and values read of the prompts."""
        return self.encode(self.tokenize(list(prompts)))[0]

    def video_pipeline(self, unet: Any, motion_adapter: Any, scheduler: Any) -> "DiffusionPipeline":
        """An AnimateDiff pipeline of this model's other parts. Raises UserError where there is none."""
        raise UserError(f"clips are drawn by Stable Diffusion 1.x alone, not by a {self.title}")

"""Masked language modelling (MLM) while a concept is learned: prompts in rich contexts, some tokens hidden.

Kim et al. 2024, arXiv:2410.10058. N prompts, L tokens, D text width, V rows of the token table.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.bases.registry import base_row
from utils.common.seeds import seed_of
from utils.concepts.names import written_out
from utils.config.concepts import Concept
from utils.losses.context_prompts import draw_prompt, kind_of
from utils.losses.contextualizer import Contextualizer, load_contextualizer, show_mask_row

if TYPE_CHECKING:
    from utils.bases.base import BaseModel
    from utils.config.train_config import TrainConfig
    from utils.losses.predict import Prediction

PROMPTS = 25  # a step
PROBABILITY = 0.15  # of a sub-token to be masked
NO_ANSWER = -100  # padding, which cross-entropy ignores


@dataclass(frozen=True)
class MaskedPrompts:
    """ids: (N, L), BOS where a token is hidden; answers: (N, L), what stands there, NO_ANSWER for padding;
    masked: (N, L), True where hidden, on the CPU: how many there are is asked of no device; contextualizer:
    who answers."""

    ids: Tensor
    answers: Tensor
    masked: Tensor
    contextualizer: Contextualizer


class Masker:
    """Hides tokens of prompts, word by word, so that all pieces of a word that must stay do stay."""

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.length = tokenizer, tokenizer.model_max_length
        self.known: dict[str, list[int]] = {}

    def pieces(self, word: str) -> list[int]:
        """The sub-tokens of a word; CLIP's tokenizer splits at blanks first, so a prompt's are its words'."""
        if word not in self.known:
            self.known[word] = self.tokenizer(
                written_out(self.tokenizer, word), add_special_tokens=False
            ).input_ids
        return self.known[word]

    def fits(self, prompt: str) -> bool:
        """Whether the prompt, BOS and EOS are at most L tokens."""
        return sum(len(self.pieces(word)) for word in prompt.split()) + 2 <= self.length

    def mask(
        self, prompt: str, kept: Iterable[str], rng: random.Random, probability: float = PROBABILITY
    ) -> tuple[list[int], list[int], list[bool]]:
        """A prompt that fits -> ids, answers, masked, each of length L (see MaskedPrompts).

        Each sub-token is hidden with `probability`, but none of the words `kept`, of BOS, EOS and padding.
        """
        bos, eos, padding = (getattr(self.tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad"))
        kept, answers, masked = {word.lower() for word in kept}, [bos], [False]
        for word in prompt.split():
            for piece in self.pieces(word):
                answers.append(piece)
                masked.append(word.lower() not in kept and rng.random() < probability)
        answers, masked = [*answers, eos], [*masked, False]
        ids = [bos if hidden else piece for piece, hidden in zip(answers, masked, strict=True)]
        rest = self.length - len(ids)
        assert rest >= 0, f"'{prompt}' has {len(ids)} tokens, more than {self.length}"
        return ids + [padding] * rest, answers + [NO_ANSWER] * rest, masked + [False] * rest


def stack(
    rows: Sequence[tuple[list[int], list[int], list[bool]]], contextualizer: Contextualizer
) -> MaskedPrompts:
    """Rows of `Masker.mask`; ids and answers on the contextualizer's device."""
    ids, answers, masked = (torch.tensor(column) for column in zip(*rows, strict=True))
    device = contextualizer.mask_row.device
    return MaskedPrompts(ids.to(device), answers.to(device), masked, contextualizer)


def draw_fitting(masker: Masker, draw: Callable[[], str]) -> str:
    """A prompt of `draw()` that fits; draws again until one does."""
    for _ in range(1000):
        if masker.fits(prompt := draw()):
            return prompt
    raise ValueError(f"of 1000 prompts none fits {masker.length} tokens, e.g. '{prompt}'")


class MaskedLanguage:
    """The prompts of every step: a function of (run seed, step) alone, the same in all processes."""

    def __init__(
        self, concepts: Sequence[Concept], tokenizer: Any, contextualizer: Contextualizer, seed: int
    ):
        self.concepts, self.contextualizer, self.seed = concepts, contextualizer, seed
        self.masker = Masker(tokenizer)

    def prompt(self, concept: Concept, rng: random.Random) -> str:
        """A prompt about the concept that the text encoder takes whole."""
        kind = kind_of(concept.cls_token)
        return draw_fitting(self.masker, lambda: draw_prompt(kind, rng).format(concept.subject))

    def draw(self, step: int) -> MaskedPrompts:
        """PROMPTS masked prompts, the concepts in turn; their tokens and class words are never hidden."""
        rng, rows = random.Random(seed_of(self.seed, "masked prompts", step)), []
        for number in range(PROMPTS):
            concept = self.concepts[number % len(self.concepts)]
            kept = [concept.modifier_token, *concept.cls_token.split()]
            rows.append(self.masker.mask(self.prompt(concept, rng), kept, rng))
        return stack(rows, self.contextualizer)


def prepare_mlm(base: BaseModel, config: TrainConfig) -> MaskedLanguage:
    """Load the base's contextualizer and let its text encoder read [MASK]; before anything has been trained.

    Raises UserError as `load_contextualizer` does.
    """
    row = base_row(config.pretrained_model_name_or_path)
    contextualizer = load_contextualizer(row, base.text_encoder)
    show_mask_row(base.text_encoder, contextualizer.mask_row, base.tokenizer.bos_token_id)
    return MaskedLanguage(config.concepts(), base.tokenizer, contextualizer, config.seed)


def loss_mlm(logits: Tensor, answers: Tensor) -> Tensor:
    """Masked language modelling: cross-entropy, averaged over the masked tokens of all prompts of a step.

    logits: (M, V + 1) of the frozen contextualizer; answers: (M,) ids. Returns a float32 scalar; 0, without
    gradient, where nothing was masked. Kim et al. 2024, arXiv:2410.10058.
    """
    return F.cross_entropy(logits.float(), answers) if len(answers) else logits.new_zeros(())


def mlm_term(prediction: Prediction) -> Tensor:
    """`loss_mlm` of what the contextualizer answers to this step's prompts."""
    prompts, (states,) = prediction.texts["loss_mlm"]
    logits = prompts.contextualizer(states, prompts.masked)
    return loss_mlm(logits, prompts.answers[prompts.masked])

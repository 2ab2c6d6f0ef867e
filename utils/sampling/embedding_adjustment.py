"""Test-time embedding adjustment: a concept's text states are turned back towards its class; no training.

The idea is that of Bui et al. 2025, arXiv:2506.22685: a learned token grows and turns in the text space until
it outweighs the other words, so before sampling its states are rescaled and turned (slerp) towards those of
the prompt in which the class stands in its place. Verified: the abstract (magnitude and direction are
adjusted at inference, for any method), and that the authors' guide for ClassDiffusion mixes the states of
both prompts by slerp and norm, with two numbers, rho 0.2 and alpha 0.5. Not verified: the exact formula, and
what those two stand for. Chosen here: only the state at the token's place is changed, its norm becomes the
class's, and `rotation` is the share of the angle.

Shapes: B prompts, L tokens, G layers (1, or those of layer rows), D text width.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.bases.base import BaseModel
from utils.bases.families import as_base
from utils.sampling.settings import check_rotation

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from transformers import PreTrainedTokenizerBase


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """Unit vectors (..., D) on the great circle from start's direction to end's. share: of the angle.

    Opposite vectors have no such circle; nearly parallel ones, where sin of the angle vanishes, are mixed
    along the straight line, which is the same to rounding.
    """
    a, b = F.normalize(start, dim=-1), F.normalize(end, dim=-1)
    cosine = (a * b).sum(dim=-1, keepdim=True).clamp(-1, 1)
    angle = torch.arccos(cosine)
    sine = torch.sin(angle)
    along = (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / sine.clamp(min=1e-12)
    return F.normalize(torch.where(sine < 1e-4, (1 - share) * a + share * b, along), dim=-1)


@torch.no_grad()
def adjust(
    pipeline: "BaseModel | DiffusionPipeline",
    prompts: Sequence[str],
    states: Tensor,
    classes: Mapping[str, str | None],
    rotation: float,
) -> Tensor:
    """The states (B, G·L, D) with every concept's state rescaled to its class's norm and turned towards it.

    classes: class word of each modifier token. rotation: 0 keeps the direction (the norm still becomes the
    class's), 1 is the class's own state. A class of several tokens is read at its last one, whose state has
    seen the others. Prompts without a token stay as they are. Raises UserError as `check_rotation` does.
    """
    check_rotation(rotation, classes)
    base, adjusted = as_base(pipeline), states.clone()
    tokenizer, length = base.tokenizer, base.tokenizer.model_max_length
    for number, prompt in enumerate(prompts):
        for token, word in classes.items():
            if token not in prompt:
                continue
            class_prompt, last = _in_place_of(tokenizer, prompt, token, word)
            place = _first(tokenizer, prompt, token)
            if place is None or last >= length - 1:
                continue  # cut off: the prompt shows nothing of it
            others = base.text_states([class_prompt])
            own = states[number, place::length].float()  # (G, D)
            target = others[0, last::length].to(own)
            norm = target.norm(dim=-1, keepdim=True)
            adjusted[number, place::length] = (norm * slerp(own, target, rotation)).to(states.dtype)
    return adjusted


def _first(tokenizer: "PreTrainedTokenizerBase", prompt: str, token: str) -> int | None:
    """The place of the token in the encoded prompt, None where the prompt is cut before it."""
    ids = tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids
    wanted = tokenizer.convert_tokens_to_ids(token)
    return ids.index(wanted) if wanted in ids else None


def _in_place_of(tokenizer: "PreTrainedTokenizerBase", prompt: str, token: str, word: str) -> tuple[str, int]:
    """The prompt with the class for the concept, and the place of the class's last token."""
    phrase = f"{token} {word}" if f"{token} {word}" in prompt else token
    before, after = prompt.split(phrase, 1)
    head = tokenizer(f"{before}{word}", add_special_tokens=False).input_ids
    return f"{before}{word}{after}", len(head)  # BOS is the token before

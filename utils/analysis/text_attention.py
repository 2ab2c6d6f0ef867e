"""Self-attention between the tokens of a prompt, in the text encoder.

A is the mean of softmax(Q Kᵀ / √d) over layers and heads. Each token attends to itself and to those before it
alone, so a word at j* reaches the others only through the A[i, j*] of later places i. Kim et al.
(arXiv:2410.10058, Proposition 1) bound by these how far the word moves the others' states.

Shapes: B prompts, L tokens, C width, H heads.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from utils.bases.base import BaseModel


def can_read(base: BaseModel) -> bool:
    """Whether a prompt has text states before the timestep is known (of a mapper's tokens it has none)."""
    return not any(hasattr(encoder.model, "mappers") for encoder in base.encoders)


@torch.no_grad()
def text_attention(base: BaseModel, prompt: str) -> Tensor:
    """A of the first text encoder, (L, L) float32: row i is what token i attends to; rows sum to 1. Of layer
    rows, the mean over their copies of the prompt."""
    sums: list[Tensor] = []

    def record(attention: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]  # (B, L, C)
        sums.append(_weights(attention, hidden).mean(dim=(0, 1)))

    encoder = base.encoders[0].model
    layers = [module for module in encoder.modules() if hasattr(module, "q_proj")]
    hooks = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in layers]
    try:
        encoder(base.tokenize([prompt]))
    finally:
        for hook in hooks:
            hook.remove()
    assert len(sums) == len(layers) > 0, f"{len(sums)} of {len(layers)} layers were called"
    return torch.stack(sums).mean(dim=0)


def _weights(attention: nn.Module, hidden: Tensor) -> Tensor:
    """(B, L, C) -> (B, H, L, L), causal."""
    query, key = (
        project(hidden).unflatten(2, (-1, attention.head_dim)).transpose(1, 2).float()
        for project in (attention.q_proj, attention.k_proj)
    )
    scores = query @ key.transpose(2, 3) * attention.scale
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(later, float("-inf")).softmax(dim=-1)


def attention_paid(weights: Tensor, positions: Mapping[str, Sequence[int]]) -> tuple[dict, dict]:
    """(word -> what the prompt's later places, EOS included, attend to it on average; word -> the same if
    each place attended alike to all that it sees).

    weights: (L, L). positions: word -> the places of its tokens, of all words, BOS at 0.
    """
    end = 1 + max(place for places in positions.values() for place in places)  # EOS
    paid, chance = {}, {}
    for word, places in positions.items():
        later = range(max(places) + 1, end + 1)
        paid[word] = float(weights[list(later)][:, list(places)].sum(dim=1).mean())
        chance[word] = sum(len(places) / (i + 1) for i in later) / len(later)
    return paid, chance

"""Prompts as token ids, and the text feature of a phrase.

Shapes: B phrases, L tokens, D text width.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenize(tokenizer: "PreTrainedTokenizerBase", phrases: list[str]) -> Tensor:
    """Token ids (B, L), padded, and cut as the pipeline cuts prompts; L is the model's own length."""
    length = tokenizer.model_max_length
    if not phrases:
        return torch.empty(0, length, dtype=torch.long)
    encoded = tokenizer(
        phrases, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    return encoded.input_ids


def feature_at(last_hidden_state: Tensor, input_ids: Tensor, token_id: int | Tensor) -> Tensor:
    """The text feature at the first place of a token in each phrase.

    last_hidden_state: (B, L, D) after the final layer norm; input_ids: (B, L); token_id: one id for all
    phrases (EOS, the paper's pooling) or (B,) ids, one per phrase (its modifier, as the official code).
    Returns (B, D). Raises ValueError if a phrase lacks its token.
    `pooler_output` is not EOS: with SD 1.5's text config it pools at the largest id, the modifier.
    """
    token_ids = torch.as_tensor(token_id, device=input_ids.device).reshape(-1, 1)  # (B or 1, 1)
    found = input_ids == token_ids  # (B, L)
    if not found.any(dim=1).all():
        raise ValueError(f"a phrase lacks the token it is pooled at, id {token_ids.flatten().tolist()}")
    rows = torch.arange(len(input_ids), device=input_ids.device)
    return last_hidden_state[rows, found.int().argmax(dim=1)]

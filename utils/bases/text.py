"""Prompts as token ids, and the text feature of a phrase.

Shapes: B phrases, L tokens, D text width.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from utils.concepts.names import written_out

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenize(tokenizer: "PreTrainedTokenizerBase", phrases: list[str]) -> Tensor:
    """Token ids (B, L), padded, and cut as the pipeline cuts prompts; L is the model's own length."""
    length = tokenizer.model_max_length
    if not phrases:
        return torch.empty(0, length, dtype=torch.long)
    encoded = tokenizer(
        [written_out(tokenizer, phrase) for phrase in phrases],
        padding="max_length",
        max_length=length,
        truncation=True,
        return_tensors="pt",
    )
    return encoded.input_ids


def feature_at(last_hidden_state: Tensor, input_ids: Tensor, token_id: int | Tensor) -> Tensor:
    """The text feature at the first place of a token in each phrase.

    last_hidden_state: (B, L, D) after the final layer norm; input_ids: (B, L); token_id: one id for all
    phrases (EOS, the paper's pooling) or (B,) ids, one per phrase (its modifier, as the official code).
    Returns (B, D); each phrase has its token (`check_contains`).
    `pooler_output` is not EOS: with SD 1.5's text config it pools at the largest id, the modifier.
    """
    rows = torch.arange(len(input_ids), device=input_ids.device)
    return last_hidden_state[rows, _places(input_ids, token_id).int().argmax(dim=1)]


def check_contains(input_ids: Tensor, token_id: int | Tensor) -> None:
    """Raises ValueError if a phrase of (B, L) ids lacks its token, of which `feature_at` reads the feature.

    Apart from it, because a training step reads the same phrases and must not wait for the device.
    """
    if not _places(input_ids, token_id).any(dim=1).all():
        raise ValueError(f"a phrase lacks the token it is pooled at: {token_id}")


def _places(input_ids: Tensor, token_id: int | Tensor) -> Tensor:
    """(B, L), True where a phrase has its token."""
    if isinstance(token_id, Tensor):
        token_id = token_id.reshape(-1, 1)
    return input_ids == token_id

"""Everything that learns behind one forward, as multi-process training needs it.

B images, K phrases; states are a base's text states (utils/bases/sd.py).
"""

from typing import Any

import torch
from torch import Tensor, nn


class ConceptModel(nn.Module):
    """A base's trainable modules as one module."""

    def __init__(self, base: Any):
        super().__init__()
        self.modules_of_base = nn.ModuleDict(base.trainable)
        self.encode, self.predict = base.encode, base.predict

    def forward(
        self, noisy_latents: Tensor, timesteps: Tensor, captions: Tensor, phrases: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(B, C, h, w), (B,), ids (B, …) and (K, …) -> the prediction (B, C, h, w), the phrases' states (K,
        …).

        One pass through the text encoder serves captions and phrases.
        """
        states = self.encode(torch.cat([captions, phrases]))
        split = [state.split([len(captions), len(phrases)]) for state in states]
        prediction = self.predict(noisy_latents, timesteps, tuple(of_captions for of_captions, _ in split))
        return prediction, tuple(of_phrases for _, of_phrases in split)


def split_states(states: tuple[Tensor, ...], ids: list[Tensor]) -> list[tuple[Tensor, ...]]:
    """The states of several blocks of ids that were encoded as one, block by block."""
    parts = [state.split([len(each) for each in ids]) for state in states]
    return list(zip(*parts, strict=True))

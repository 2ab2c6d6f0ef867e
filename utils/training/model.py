"""Everything that learns behind one forward, as multi-process training needs it.

B images, K phrases; states are a base's text states (utils/bases/base.py).
"""

import torch
from torch import Tensor, nn

from utils.bases.base import BaseModel, States


class ConceptModel(nn.Module):
    """A base's trainable modules as one module."""

    def __init__(self, base: BaseModel):
        super().__init__()
        self.modules_of_base = nn.ModuleDict(base.trainable)
        self.encode, self.predict = base.encode, base.predict

    def forward(
        self, noisy_latents: Tensor, timesteps: Tensor, captions: Tensor, phrases: Tensor, sizes: Tensor
    ) -> tuple[Tensor, States]:
        """(B, C, h, w), (B,), ids (B, …) and (K, …), (B, 6) -> the prediction (B, C, h, w), the phrases'
        states (K, …).

        One pass through the text encoder serves captions and phrases.
        """
        states = self.encode(torch.cat([captions, phrases]))
        split = [state.split([len(captions), len(phrases)]) for state in states]
        of_captions = tuple(captions for captions, _ in split)
        prediction = self.predict(noisy_latents, timesteps, of_captions, sizes)
        return prediction, tuple(of_phrases for _, of_phrases in split)


def split_states(states: States, ids: list[Tensor]) -> list[States]:
    """The states of several blocks of ids that were encoded as one, block by block."""
    parts = [state.split([len(each) for each in ids]) for state in states]
    return list(zip(*parts, strict=True))

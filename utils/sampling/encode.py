"""Prompts to the text states that a pipeline's UNet takes, in the text encoder's dtype.

Shapes: B prompts, L tokens (with layer rows G·L, see utils/learners/layer_rows.py; with mappers ids stand
for states, see mapper.py), D text width.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def encode(
    pipeline: Any, prompts: Sequence[str], negative_prompt: str | None = None, guided: bool = False
) -> tuple[Tensor, Tensor | None]:
    """States (B, L, D) of the prompts, and with `guided` those of the negative prompt, empty by default."""
    return pipeline.encode_prompt(
        list(prompts),
        device=pipeline.device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=guided,
        negative_prompt=[negative_prompt or ""] * len(prompts),
    )

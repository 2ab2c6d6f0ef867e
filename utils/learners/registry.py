"""What can train, one row each; a method's stages name these rows.

A learner is a file of this folder: which parameters it trains, what it puts in a concept's file, and how that
is merged into a plain pipeline.
"""

from collections.abc import Iterable
from pathlib import Path

from utils.common.errors import UserError
from utils.learners import (
    cross_attention,
    cross_attention_kv,
    layer_rows,
    mapper,
    spectral,
    text_encoder,
    token_rows,
    unet,
)
from utils.learners.learner import Learner

LEARNERS: dict[str, Learner] = {
    learner.name: learner
    for learner in (
        cross_attention_kv.LEARNER,
        cross_attention.LEARNER,
        token_rows.LEARNER,
        layer_rows.LEARNER,
        mapper.LEARNER,
        unet.LEARNER,
        text_encoder.LEARNER,
        spectral.LEARNER,
    )
}


def check_has_text_states(learners: Iterable[str], path: Path | str) -> None:
    """Raises UserError for a concept whose prompts have no text states until the timestep is known."""
    for name in learners:
        if name in LEARNERS and LEARNERS[name].timed:
            raise UserError(
                f"{path} trained {LEARNERS[name].title}: its token means something else at every timestep, "
                "so that there are no text states to read; give another concept"
            )

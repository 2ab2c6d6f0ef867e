"""What can train, one row each; a method's stages name these rows.

A learner is a file of this folder: which parameters it trains, what it puts in a concept's file, and how that
is merged into a plain pipeline.
"""

from utils.learners import (
    cross_attention,
    cross_attention_kv,
    layer_rows,
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
        unet.LEARNER,
        text_encoder.LEARNER,
        spectral.LEARNER,
    )
}

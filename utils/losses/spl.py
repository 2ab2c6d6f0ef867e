"""The phrases of the semantic preservation loss.

K concepts with a class word, D text width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from utils.config.train_config import TrainConfig


@dataclass(frozen=True)
class Phrases:
    """ids: of "a photo of a <new1> dog", (K, …). class_features: of "a photo of a dog", constants, one (K, D)
    for each text feature of the base. modifiers: None to read a phrase at EOS, as the paper does, or the (K,)
    ids of the tokens to read it at, as the official code does.
    """

    ids: Tensor
    class_features: list[Tensor]
    modifiers: Tensor | None


def phrases_of(base: Any, config: TrainConfig) -> Phrases:
    """The phrases of the concepts whose class is known; before anything has been trained."""
    named = [concept for concept in config.concepts() if concept.cls_token]
    class_ids = base.tokenize([f"a photo of a {concept.cls_token}" for concept in named])
    with torch.no_grad():
        class_features = base.features(base.encode(class_ids), class_ids) if named else []
    modifiers = base.token_ids([concept.modifier_token for concept in named])
    ids = base.tokenize([f"a photo of a {concept.subject}" for concept in named])
    return Phrases(ids, class_features, modifiers if config.spl_pool == "modifier" else None)

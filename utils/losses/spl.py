"""The semantic preservation loss (SPL): a concept's phrase stays close to its class in the text encoder.

    L_sp = mean over concepts of 1 - cos(E("a photo of a <new1> dog"), E("a photo of a dog"))

E reads a phrase at its EOS token. K concepts with a class word, D text width. arXiv 2405.17532.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.bases.text import check_contains

if TYPE_CHECKING:
    from utils.bases.base import BaseModel
    from utils.config.train_config import TrainConfig
    from utils.losses.predict import Prediction


@dataclass(frozen=True)
class Phrases:
    """ids: of "a photo of a <new1> dog", (K, …). class_features: of "a photo of a dog", constants, one (K, D)
    for each text feature of the base. modifiers: None to read a phrase at EOS, as the paper does, or the (K,)
    ids of the tokens to read it at, as the official code does.
    """

    ids: Tensor
    class_features: list[Tensor]
    modifiers: Tensor | None


def phrases_of(base: BaseModel, config: TrainConfig) -> Phrases:
    """The phrases of the concepts whose class is known; before anything has been trained."""
    named = [concept for concept in config.concepts() if concept.cls_token]
    class_ids = base.tokenize([f"a photo of a {concept.cls_token}" for concept in named])
    with torch.no_grad():
        class_features = base.features(base.encode(class_ids), class_ids) if named else []
    modifiers = base.token_ids([concept.modifier_token for concept in named])
    ids = base.tokenize([f"a photo of a {concept.subject}" for concept in named])
    if config.spl_pool == "modifier":
        check_contains(ids, modifiers)
    return Phrases(ids, class_features, modifiers if config.spl_pool == "modifier" else None)


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 − cos(a, b) along the last axis: (..., D), (..., D) -> (...) in [0, 2], float32.

    Written as half the squared distance of the unit vectors. The two are equal, but this one has no
    cancellation where SPL lives, near 0, and is exactly 0 for equal vectors.
    """
    return 0.5 * (F.normalize(a.float(), dim=-1) - F.normalize(b.float(), dim=-1)).square().sum(dim=-1)


def loss_spl(features: Tensor, class_features: Tensor) -> Tensor:
    """L_sp: cosine distance of each concept's phrase to its class phrase, averaged over the concepts.

    features: (K, D) text features of "a photo of a <new1> dog"; class_features: (K, D) of "a photo of a dog",
    a constant here (the official code recomputes it with gradient). Returns a float32 scalar in [0, 2].
    """
    assert features.shape == class_features.shape, f"{tuple(features.shape)}, {tuple(class_features.shape)}"
    return cosine_distance(features, class_features.detach()).mean()


def spl_parts(prediction: Prediction) -> dict[str, Tensor]:
    """Each feature's share, without gradient, for the log: of SDXL TE1 at EOS, TE2 at EOS, the pooled."""
    features = zip(
        prediction.feature_names, prediction.phrase_features, prediction.class_features, strict=False
    )
    return {name: loss_spl(feature, constant).detach() for name, feature, constant in features}


def spl_term(prediction: Prediction) -> Tensor:
    """`loss_spl`, averaged over the base's text features: one for SD, or one for each layer's own text."""
    pairs = zip(prediction.phrase_features, prediction.class_features, strict=True)
    return torch.stack([loss_spl(features, constant) for features, constant in pairs]).mean()

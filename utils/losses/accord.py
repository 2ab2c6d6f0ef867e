"""ACCORD's prior decouple loss: a concept is as close to other things as its class is. Liu et al. 2025, arXiv
2503.01122. Its other loss compares denoising steps, and is not here.

    L_accord = mean over concepts and contexts g of | cos(E(concept), E(g)) − cos(E(class), E(g)) |

E reads "a photo of a <new1> dog" and "a photo of a dog" as SPL does, and contexts that name neither: places,
worn things, other things, media. Like SPL it is 0 for a concept that equals its class; unlike SPL it leaves
free what no context is like. K concepts, N contexts, D text width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.losses.context_prompts import GARMENTS, MEDIA, OBJECTS, PLACES

if TYPE_CHECKING:
    from utils.bases.base import BaseModel
    from utils.config.train_config import TrainConfig
    from utils.losses.predict import Prediction

CONTEXTS = (*PLACES, *GARMENTS, *OBJECTS, *MEDIA)


@dataclass(frozen=True)
class Contexts:
    """features: of the contexts, constants, one (N, D) for each text feature of the base. ids: none, for what
    is compared has been encoded already."""

    features: list[Tensor]
    ids: Tensor

    def draw(self, step: int) -> Contexts:
        return self


@torch.no_grad()
def prepare_accord(base: BaseModel, config: TrainConfig) -> Contexts:
    """The contexts that name no class, read before anything has been trained."""
    words = {word for each in config.concepts() for word in each.cls_token.lower().split()}
    ids = base.tokenize([f"a photo of {text}" for text in CONTEXTS if not words & set(text.split())])
    batches = [base.features(base.encode(part), part) for part in ids.split(64)]
    return Contexts([torch.cat(parts) for parts in zip(*batches, strict=True)], ids[:0])


def loss_accord(features: Tensor, class_features: Tensor, contexts: Tensor) -> Tensor:
    """features, class_features: (K, D) of the concepts' phrases and their classes'; contexts: (N, D).

    Returns a float32 scalar in [0, 2]; only `features` take a gradient.
    """
    of_concept, of_class, others = (
        F.normalize(each.float(), dim=-1) for each in (features, class_features.detach(), contexts)
    )
    return (of_concept @ others.T - of_class @ others.T).abs().mean()


def accord_term(prediction: Prediction) -> Tensor:
    """`loss_accord`, averaged over the base's text features."""
    contexts, _ = prediction.texts["loss_accord"]
    rows = zip(prediction.phrase_features, prediction.class_features, contexts.features, strict=True)
    return torch.stack([loss_accord(*row) for row in rows]).mean()

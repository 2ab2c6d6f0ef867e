"""One pass through the model for everything that a stage's losses compare.

B images of which b are instance images, K phrases, C latent channels, h = w latent pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from utils.losses.preserve import base_prediction, class_caption, moved
from utils.training.model import split_states

if TYPE_CHECKING:
    from utils.bases.base import States
    from utils.config.train_config import TrainConfig
    from utils.data.dataset import Batch
    from utils.training.run import Run, StageRun


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the losses of a step are computed from; class images, if any, follow the instance images.

    noise_pred, target: (B, C, h, w); instances: how many of the B are instance images.
    phrase_features, class_features: one (K, D) each for every text feature of the base. feature_names: of
    several, for the log. phrase_states: the text states of all positions of the concepts' phrases, (K, L, D)
    each. texts: loss -> what it drew for this step, and the states of its ids. kept_pred, base_pred: what the
    model and the untouched base predict for the instance images under class captions, (B, C, h, w); empty
    unless a loss asks. moved: the trained parameters and their start, if a loss asks. mask: (b, 1, h, w) of
    the instance images. config: the run's.
    """

    noise_pred: Tensor
    target: Tensor
    instances: int
    phrase_features: list[Tensor]
    class_features: list[Tensor]
    feature_names: tuple[str, ...] = ()
    phrase_states: States = ()
    texts: dict[str, tuple[Any, States]] = field(default_factory=dict)
    kept_pred: Tensor | None = None
    base_pred: Tensor | None = None
    moved: Sequence[tuple[Tensor, Tensor]] = ()
    mask: Tensor | None = None
    config: TrainConfig | None = None


def predict(
    run: Run,
    at: StageRun,
    noisy_latents: Tensor,
    timesteps: Tensor,
    target: Tensor,
    batch: Batch,
    texts: dict[str, Any],
) -> Prediction:
    """noisy_latents, target: (B, C, h, w); timesteps: (B,); batch: of B items; texts: loss -> its `ids`.

    With the captions, the text encoder reads the phrases of the semantic preservation loss and the losses'
    own texts. Where a loss compares outputs, the instance images come once more, under class captions.
    """
    base, phrases, b = run.base, run.phrases, run.config.train_batch_size
    captions, sizes = batch.captions, batch.sizes
    again = b if any(loss.output for loss in at.losses) else 0
    referred = b if any(loss.base for loss in at.losses) else 0
    kept = [class_caption(caption, run.instances.concepts) for caption in captions[:referred]]
    base_pred = base_prediction(run, noisy_latents[:referred], timesteps[:referred], kept, sizes[:referred])

    compared = phrases.ids if any(loss.text for loss in at.losses) else phrases.ids[:0]
    ids = [compared, *(each.ids for each in texts.values())]
    predicted, states = at.model(
        torch.cat([noisy_latents, noisy_latents[:again]]) if again else noisy_latents,  # keeps its layout
        torch.cat([timesteps, timesteps[:again]]),
        base.tokenize(captions + kept[:again]),
        torch.cat(ids),
        torch.cat([sizes, sizes[:again]]),
    )
    noise_pred, kept_pred = predicted.split([len(noisy_latents), again])
    of_phrases, *of_texts = split_states(states, ids)
    drawn = zip(texts.items(), of_texts, strict=True)
    return Prediction(
        noise_pred=noise_pred,
        target=target,
        instances=b,
        phrase_features=base.features(of_phrases, compared, phrases.modifiers) if len(compared) else [],
        class_features=phrases.class_features,
        feature_names=base.feature_names if len(compared) else (),
        phrase_states=of_phrases,
        texts={name: (each, state) for (name, each), state in drawn},
        kept_pred=kept_pred,
        base_pred=base_pred,
        moved=list(moved(run, at.stage.trains)),
        mask=batch.mask[:b].to(noisy_latents.device),
        config=run.config,
    )

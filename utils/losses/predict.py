"""One pass through the model for everything that a stage's losses compare.

B images of which b are instance images, K phrases, C latent channels, h = w latent pixels.
"""

from typing import Any

import torch
from torch import Tensor

from utils.losses.preserve import base_prediction, class_caption, moved
from utils.losses.registry import Prediction
from utils.training.model import split_states
from utils.training.run import Run, StageRun


def predict(
    run: Run,
    at: StageRun,
    noisy_latents: Tensor,
    timesteps: Tensor,
    target: Tensor,
    captions: list[str],
    texts: dict[str, Any],
) -> Prediction:
    """noisy_latents, target: (B, C, h, w); timesteps: (B,); captions: B of them; texts: loss -> its `ids`.

    With the captions, the text encoder reads the phrases of the semantic preservation loss and the losses'
    own texts. Where a loss compares outputs, the instance images come once more, under class captions.
    """
    base, phrases, b = run.base, run.phrases, run.config.train_batch_size
    again = b if any(loss.output for loss in at.losses) else 0
    kept = [class_caption(caption, run.instances.concepts) for caption in captions[:again]]
    base_pred = base_prediction(run, noisy_latents[:again], timesteps[:again], kept)

    compared = phrases.ids if any(loss.text for loss in at.losses) else phrases.ids[:0]
    ids = [compared, *(each.ids for each in texts.values())]
    predicted, states = at.model(
        torch.cat([noisy_latents, noisy_latents[:again]]) if again else noisy_latents,  # keeps its layout
        torch.cat([timesteps, timesteps[:again]]),
        base.tokenize(captions + kept),
        torch.cat(ids),
    )
    noise_pred, kept_pred = predicted.split([len(noisy_latents), again])
    of_phrases, *of_texts = split_states(states, ids)
    return Prediction(
        noise_pred,
        target,
        b,
        base.features(of_phrases, compared, phrases.modifiers) if len(compared) else [],
        phrases.class_features,
        {name: (each, state) for (name, each), state in zip(texts.items(), of_texts, strict=True)},
        kept_pred,
        base_pred,
        list(moved(run, at.stage.trains)),
    )

"""What keeps a model near its base: its output on class captions, its trained parameters' start.

The start is one copy of what trains, kept only where a loss asks for it: 77 MB for SD 1.5's K/V, 3.4 GB
for its UNet. Output preservation adds to a step the base's forward pass on the instance images and, with
gradient, as many images again.

B instance images, C latent channels, h = w latent pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.config.concepts import Concept

if TYPE_CHECKING:
    from utils.losses.predict import Prediction
    from utils.training.run import Run


def class_caption(caption: str, concepts: Sequence[Concept]) -> str:
    """The caption with the class in place of each concept: "a <new1> dog at sea" -> "a dog at sea"."""
    for concept in concepts:
        phrase = f"{concept.modifier_token} {concept.cls_token}"
        caption = caption.replace(phrase, concept.cls_token)
        caption = caption.replace(concept.modifier_token, concept.cls_token)
    return caption


def copy_start(learned: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """A copy of every trained parameter as it is now, by learner and name."""
    return {
        learner: {name: value.detach().clone() for name, value in each.items()}
        for learner, each in learned.items()
    }


@contextmanager
def untouched(
    learned: Mapping[str, Mapping[str, Tensor]], start: Mapping[str, Mapping[str, Tensor]]
) -> Iterator[None]:
    """Within it every trained parameter has its value of the start; the memory is exchanged, not copied."""
    pairs = [(learned[learner][name], value) for learner in start for name, value in start[learner].items()]
    trained = [parameter.data for parameter, _ in pairs]
    for parameter, value in pairs:
        parameter.data = value
    try:
        yield
    finally:
        for (parameter, _), value in zip(pairs, trained, strict=True):
            parameter.data = value


def base_prediction(
    run: Run, noisy_latents: Tensor, timesteps: Tensor, captions: list[str], sizes: Tensor
) -> Tensor:
    """What the untouched base predicts, (B, C, h, w), without gradient; of no captions: an empty tensor."""
    if not captions:
        return noisy_latents[:0]
    with untouched(run.learned, run.start), torch.no_grad(), run.accelerator.autocast():
        states = run.base.encode(run.base.tokenize(captions))
        return run.base.predict(noisy_latents, timesteps, states, sizes)


def moved(run: Run, learners: Sequence[str]) -> Iterator[tuple[Tensor, Tensor]]:
    """(parameter, its start) for all that the learners train; nothing where no loss asks for the start."""
    for learner in learners if run.start else ():
        for name, parameter in run.learned[learner].items():
            yield parameter, run.start[learner][name]


def loss_dop(noise_pred: Tensor, base_pred: Tensor) -> Tensor:
    """Differential output preservation: mean squared difference to the base's prediction on class captions.

    noise_pred, base_pred: (B, C, h, w) for the same noisy instance images, timesteps and captions, in which
    the class stands in place of the concept. Returns a float32 scalar. The idea is known from LoRA trainers;
    there the base's prediction is the one without the LoRA.
    """
    return F.mse_loss(noise_pred.float(), base_pred.float())


def loss_l2(moved: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Squared distance of the trained parameters from their start, summed over all; a float32 scalar."""
    return torch.stack([(value.float() - start.float()).square().sum() for value, start in moved]).sum()


def dop_term(prediction: Prediction) -> Tensor:
    """`loss_dop` of the instance images under class captions."""
    return loss_dop(prediction.kept_pred, prediction.base_pred)


def l2_term(prediction: Prediction) -> Tensor:
    """`loss_l2` of all that the stage trains."""
    return loss_l2(prediction.moved)

"""The losses of ClassDiffusion: masked denoising, prior preservation, semantic preservation (SPL).

Shapes: B images or phrases, C latent channels, h = w latent pixels, L tokens, D text width, K concepts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.config.methods import Stage
from utils.learners.registry import LEARNERS
from utils.losses.masked_prompts import prepare_mlm

if TYPE_CHECKING:
    from diffusers import DDPMScheduler


def target_of(noise_scheduler: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the UNet learns to predict: the noise (epsilon) or the velocity (v_prediction).

    latents, noise: (B, C, h, w); timesteps: (B,) integers. Returns (B, C, h, w).
    Raises ValueError for any other `prediction_type`.
    """
    prediction_type = noise_scheduler.config.prediction_type
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        return noise_scheduler.get_velocity(latents, noise, timesteps)
    raise ValueError(f"prediction_type {prediction_type!r}: training knows epsilon and v_prediction")


def loss_denoise(noise_pred: Tensor, target: Tensor, mask: Tensor, channels: str = "sum") -> Tensor:
    """L_recon: squared error inside the mask, per image divided by the mask's area, averaged over images.

    noise_pred, target: (B, C, h, w); mask: (B, 1, h, w) in [0, 1]. Returns a float32 scalar. Dividing by the
    area makes a small subject's loss as large as a big one's; an image whose mask is empty adds 0.
    Quirk kept from the official code: the channels are summed, not averaged, so under a full mask the value
    is C = 4 times the paper's per-element mean. The published λ = 1 was run against this scale. Methods of
    other families have channels "mean" (a field of their row).
    """
    assert mask.shape == (len(noise_pred), 1, *noise_pred.shape[2:]), f"mask {tuple(mask.shape)}"
    squared_error = (noise_pred.float() - target.float()).square() * mask  # (B, C, h, w)
    area = mask.sum(dim=(1, 2, 3)).clamp(min=1)  # (B,); of an empty mask the error is 0
    loss = (squared_error.sum(dim=(1, 2, 3)) / area).mean()
    return loss if channels == "sum" else loss / noise_pred.shape[1]


def loss_prior(noise_pred: Tensor, target: Tensor) -> Tensor:
    """Prior preservation on class images: the plain mean squared error.

    noise_pred, target: (B, C, h, w). Returns a float32 scalar.
    Quirk kept from the official code: a mean beside `loss_denoise`'s sum over channels, so at prior weight 1
    a class image counts a quarter of an instance image.
    """
    return F.mse_loss(noise_pred.float(), target.float())


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


def loss_mlm(logits: Tensor, answers: Tensor) -> Tensor:
    """Masked language modelling: cross-entropy, averaged over the masked tokens of all prompts of a step.

    logits: (M, V + 1) of the frozen contextualizer; answers: (M,) ids. Returns a float32 scalar; 0, without
    gradient, where nothing was masked. Kim et al. 2024, arXiv:2410.10058.
    """
    return F.cross_entropy(logits.float(), answers) if len(answers) else logits.new_zeros(())


def check_finite(terms: dict[str, Tensor], step: int) -> None:
    """Raise FloatingPointError, naming the step and every term, when one of the scalars is not finite."""
    if not torch.stack(list(terms.values())).isfinite().all():  # one wait for a GPU, not one a term
        values = ", ".join(f"{name} {term.item()}" for name, term in terms.items())
        raise FloatingPointError(f"step {step}: {values}; the last checkpoint is kept")


@dataclass(frozen=True)
class Prediction:
    """What the losses of a step are computed from; class images, if any, follow the instance images.

    noise_pred, target: (B, C, h, w); instances: how many of the B are instance images.
    phrase_features, class_features: one (K, D) each for every text feature of the base. texts: loss -> what
    it drew for this step, and the states of its ids. kept_pred, base_pred: what the model and the untouched
    base predict for the instance images under class captions, (B, C, h, w); empty unless a loss asks. moved:
    the trained parameters and their start, if a loss asks.
    """

    noise_pred: Tensor
    target: Tensor
    instances: int
    phrase_features: list[Tensor]
    class_features: list[Tensor]
    texts: dict[str, tuple[Any, tuple[Tensor, ...]]] = field(default_factory=dict)
    kept_pred: Tensor | None = None
    base_pred: Tensor | None = None
    moved: Sequence[tuple[Tensor, Tensor]] = ()


@dataclass(frozen=True)
class Loss:
    """A term beside the denoising loss: its name in the log, its weight λ, and the term itself.

    weight(config): None where a run does not have it; 0: it is logged, without gradient. prior: it needs
    class images. text: it depends on the text path alone, so that a stage which trains nothing there leaves
    it out. output: it compares predictions on class captions, so that a stage which trains tokens alone
    leaves it out. start: it needs what trains as it was at the start. prepare(base, config): None, or what
    the loss sets up once, before anything has been trained: an object whose draw(step), a function of (run
    seed, step) alone, holds token `ids` (N, …) to be encoded.
    """

    name: str
    weight: Callable[[Any], float | None]
    of: Callable[[Prediction], Tensor]
    prior: bool = False
    text: bool = False
    output: bool = False
    start: bool = False
    prepare: Callable[[Any, Any], Any] | None = None


def _spl(seen: Prediction) -> Tensor:
    pairs = zip(seen.phrase_features, seen.class_features, strict=True)
    return torch.stack([loss_spl(features, constant) for features, constant in pairs]).mean()


def _mlm(seen: Prediction) -> Tensor:
    prompts, (states,) = seen.texts["loss_mlm"]
    logits = prompts.contextualizer(states, prompts.masked)
    return loss_mlm(logits, prompts.answers[prompts.masked])


def _prior(seen: Prediction) -> Tensor:
    return loss_prior(seen.noise_pred[seen.instances :], seen.target[seen.instances :])


def _dop(seen: Prediction) -> Tensor:
    return loss_dop(seen.kept_pred, seen.base_pred)


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss("loss_spl", lambda config: config.lambda_spl if config.cls_token else None, _spl, text=True),
        Loss("loss_prior", lambda config: config.prior_loss_weight, _prior, prior=True),
        Loss("loss_dop", lambda config: config.dop_weight, _dop, output=True, start=True),
        Loss("loss_l2", lambda config: config.l2_weight, lambda seen: loss_l2(seen.moved), start=True),
        Loss("loss_mlm", lambda config: config.mlm_weight, _mlm, text=True, prepare=prepare_mlm),
    )
}


def prepare_losses(base: Any, config: Any) -> dict[str, Any]:
    """Loss -> what it sets up, for the losses that this run has."""
    wanted = [each for each in LOSSES.values() if each.prepare and each.weight(config) is not None]
    return {loss.name: loss.prepare(base, config) for loss in wanted}


def losses_of(config: Any, stage: Stage) -> list[Loss]:
    """The terms of a stage: those that the run has and that reach what the stage trains."""
    learners = [LEARNERS[name] for name in stage.trains]
    text = any(each.text for each in learners)
    output = not all(each.tokens_only for each in learners)
    return [
        loss
        for loss in LOSSES.values()
        if loss.weight(config) is not None
        and (stage.prior or not loss.prior)
        and (text or not loss.text)
        and (output or not loss.output)
    ]

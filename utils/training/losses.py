"""The losses of ClassDiffusion: masked denoising, prior preservation, semantic preservation (SPL).

Shapes: B images or phrases, C latent channels, h = w latent pixels, L tokens, D text width, K concepts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

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


def loss_denoise(noise_pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """L_recon: squared error inside the mask, per image divided by the mask's area, averaged over images.

    noise_pred, target: (B, C, h, w); mask: (B, 1, h, w), 0 or 1, no image all 0. Returns a float32 scalar.
    Quirk kept from the official code: the channels are summed, not averaged, so under a full mask the value
    is C = 4 times the paper's per-element mean. The published λ = 1 was run against this scale.
    """
    assert mask.shape == (len(noise_pred), 1, *noise_pred.shape[2:]), f"mask {tuple(mask.shape)}"
    squared_error = (noise_pred.float() - target.float()).square() * mask  # (B, C, h, w)
    return (squared_error.sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3))).mean()


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


def check_finite(terms: dict[str, Tensor], step: int) -> None:
    """Raise FloatingPointError, naming the step and every term, when one of the scalars is not finite."""
    if not all(torch.isfinite(term) for term in terms.values()):
        told = ", ".join(f"{name} {term.item()}" for name, term in terms.items())
        raise FloatingPointError(f"step {step}: {told}; the last checkpoint is kept")


def feature_at(last_hidden_state: Tensor, input_ids: Tensor, token_id: int | Tensor) -> Tensor:
    """The text feature at the first place of a token in each phrase.

    last_hidden_state: (B, L, D) after the final layer norm; input_ids: (B, L); token_id: one id for all
    phrases (EOS, the paper's pooling) or (B,) ids, one per phrase (its modifier, as the official code).
    Returns (B, D). Raises ValueError if a phrase lacks its token.
    `pooler_output` is not EOS: with SD 1.5's text config it pools at the largest id, the modifier.
    """
    token_ids = torch.as_tensor(token_id, device=input_ids.device).reshape(-1, 1)  # (B or 1, 1)
    found = input_ids == token_ids  # (B, L)
    if not found.any(dim=1).all():
        raise ValueError(f"a phrase lacks the token it is pooled at, id {token_ids.flatten().tolist()}")
    rows = torch.arange(len(input_ids), device=input_ids.device)
    return last_hidden_state[rows, found.int().argmax(dim=1)]

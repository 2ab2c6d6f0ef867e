"""The denoising loss on the concept's images, and prior preservation on images of its class.

B images, C latent channels, h = w latent pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

    from utils.losses.predict import Prediction


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
    Quirk kept from the official code: a mean where `loss_denoise` is a sum over channels, so at prior weight
    1 a class image counts a quarter of an instance image.
    """
    return F.mse_loss(noise_pred.float(), target.float())


def prior_term(prediction: Prediction) -> Tensor:
    """`loss_prior` of the class images, which follow the instance images."""
    b = prediction.instances
    return loss_prior(prediction.noise_pred[b:], prediction.target[b:])

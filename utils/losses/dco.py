"""Direct consistency optimisation (DCO): the subject's images become likelier than by the base, with no more
change than that takes. Lee et al. 2024, arXiv 2402.12004; github.com/kyungmnlee/dco.

    L_dco = −log σ( −β (‖ε − ε_θ(z_t, t, c)‖² − ‖ε − ε_base(z_t, t, c_class)‖²) )

It stands in place of the denoising loss: where the tuned model is better than the base by some 1/β, next to
nothing is left to learn. c_class: the caption with the class for the concept, as in the authors' code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from utils.losses.denoise import loss_denoise

if TYPE_CHECKING:
    from utils.losses.predict import Prediction


def loss_dco(noise_pred: Tensor, base_pred: Tensor, target: Tensor, mask: Tensor, beta: float) -> Tensor:
    """noise_pred, base_pred, target: (b, C, h, w) of the instance images; mask: (b, 1, h, w). Both errors are
    means over images, channels and the mask. Returns a float32 scalar; log 2 where they are equal."""
    tuned, base = (loss_denoise(each, target, mask, "mean") for each in (noise_pred, base_pred))
    return -F.logsigmoid(-beta * (tuned - base.detach()))


def dco_term(prediction: Prediction) -> Tensor:
    """`loss_dco` of the instance images."""
    b = prediction.instances
    pair = (prediction.noise_pred[:b], prediction.base_pred, prediction.target[:b])
    return loss_dco(*pair, prediction.mask, prediction.config.dco_beta)

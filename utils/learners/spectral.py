"""Shifts of the singular values of the UNet's matrices (SVDiff, Han et al. 2023, arXiv:2303.11305).

W' = U diag(relu(σ + δ)) Vᵀ for every 2-D and 4-D weight W = U diag(σ) Vᵀ, seen as (out, in·kh·kw): 222,696
values δ in 282 matrices of SD 1.5. The paper also shifts the norms' weights; here it does not, as in the
published count of the matrices alone.

U and Vᵀ are kept in float32, 1.26 times the UNet's own numbers (4.3 GB at SD 1.5), and every W' is formed
when it is used: gradient checkpointing forms it again instead of keeping it. Where singular values are nearly
equal, U and V are not unique, and another machine may choose others; so they are computed in float64 on the
CPU, and a concept's file holds σ beside δ, by which a loader checks that it shifts the same matrices.

Shapes: o outputs, i = in·kh·kw inputs, r = min(o, i).
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from utils.common.errors import UserError
from utils.learners.learner import WRONG_BASE, Learner, Parameters, Tensors, check_names, check_shape

if TYPE_CHECKING:
    from utils.bases.base import BaseModel

TOLERANCE = 1e-2  # of the largest singular value: rounding to half precision stays far below


def decompose(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (o, r), σ (r,), Vᵀ (r, i) of a weight (o, i) or (o, in, kh, kw); float32 on the weight's device."""
    place = "meta" if weight.is_meta else "cpu"
    matrix = weight.detach().to(place, torch.float64).flatten(1)
    return tuple(
        part.to(weight.device, torch.float32) for part in torch.linalg.svd(matrix, full_matrices=False)
    )


def shifted(weight: Tensor, basis: tuple[Tensor, Tensor, Tensor], delta: Tensor) -> Tensor:
    """W' in the weight's shape and dtype. basis: of `decompose`; delta: (r,).

    Written as W + U diag(relu(σ + δ) - σ) Vᵀ, so that δ = 0 gives W bit for bit.
    """
    u, sigma, vh = basis
    with torch.autocast(weight.device.type, enabled=False):
        change = (u * (torch.relu(sigma + delta) - sigma)) @ vh  # (o, i)
        return (weight.float() + change.view_as(weight)).to(weight.dtype)


class SpectralShift(nn.Module):
    """The parametrization of one weight; `delta` is what trains."""

    def __init__(self, weight: Tensor):
        super().__init__()
        # Neither parameters nor buffers: they never change, and processes would send them at every step.
        self.basis = decompose(weight)
        self.delta = nn.Parameter(torch.zeros_like(self.basis[1]))

    def forward(self, weight: Tensor) -> Tensor:
        return shifted(weight, self.basis, self.delta)


def matrices(unet: nn.Module) -> dict[str, nn.Module]:
    """The modules whose weight is shifted, by name: every linear layer and convolution of the UNet."""
    return {
        name: module
        for name, module in unet.named_modules()
        if ".motion_modules." not in name
        and "parametrizations" not in name
        and isinstance(getattr(module, "weight", None), Tensor)
        and module.weight.ndim in (2, 4)
    }


def attach(base: "BaseModel") -> Parameters:
    """δ of every matrix, zero at the start: the first output is the base model's, bit for bit."""
    deltas = {}
    for name, module in matrices(base.unet).items():
        if parametrize.is_parametrized(module):
            raise UserError("the spectral learner is attached already: name it once")
        shift = SpectralShift(module.weight)
        parametrize.register_parametrization(module, "weight", shift, unsafe=True)  # no trial of its output
        deltas[name] = shift.delta
    return deltas


def keeps(base: "BaseModel") -> int:
    """Bytes of U, σ and Vᵀ of all matrices."""
    shifts = [each for each in base.unet.modules() if isinstance(each, SpectralShift)]
    return sum(part.numel() * part.element_size() for shift in shifts for part in shift.basis)


def pack(base: "BaseModel", parameters: Parameters) -> Tensors:
    """{"<module>.delta": (r,), "<module>.sigma": (r,)}."""
    tensors = {}
    for name, delta in parameters.items():
        shift = base.unet.get_submodule(name).parametrizations.weight[0]
        tensors |= {f"{name}.delta": delta, f"{name}.sigma": shift.basis[1]}
    return tensors


def merge(base: "BaseModel", tensors: Tensors, path: Path) -> dict[str, Tensors]:
    """Every shifted matrix, as a plain weight. Raises UserError where the singular values are others.

    Decomposes the whole UNet again. Weights that were rounded to half precision before have slightly other
    singular vectors; for the exact result load the concept into a float32 pipeline, then cast.
    """
    modules = matrices(base.unet)
    check_names(tensors, [f"{name}.{part}" for name in modules for part in ("delta", "sigma")], "UNet", path)
    values = {}
    for name, module in modules.items():
        basis = decompose(module.weight)
        delta, sigma = (tensors[f"{name}.{part}"].to(basis[1]) for part in ("delta", "sigma"))
        for part, value in (("delta", delta), ("sigma", sigma)):
            check_shape(f"{name}.{part}", value, basis[1], "UNet", path)
        if (sigma - basis[1]).abs().max() > TOLERANCE * basis[1].max():
            raise UserError(f"{path}: the singular values of {name} are not this UNet's; {WRONG_BASE}")
        with torch.no_grad():
            values[f"{name}.weight"] = shifted(module.weight.float(), basis, delta)
    return {"unet": values}


LEARNER = Learner(
    "spectral",
    "singular values",
    attach,
    pack,
    merge,
    keeps=keeps,
    plain="how strong each part of the image model is (singular values)",
)

"""Shifts of the singular values of the UNet's matrices (SVDiff, Han et al. 2023, arXiv:2303.11305).

W' = U diag(relu(σ + δ)) Vᵀ for every 2-D and 4-D weight W = U diag(σ) Vᵀ, seen as (out, in·kh·kw): 222,696
values δ in 282 matrices of SD 1.5. The paper also shifts the norms' weights; here it does not, as in the
published count of the matrices alone.

U and Vᵀ are kept in float32, 1.26 times the UNet's own numbers (4.3 GB at SD 1.5), and every W' is formed
when it is used: gradient checkpointing forms it again instead of keeping it. Where singular values are nearly
equal, U and V are not unique, and another machine may choose others; so they are computed in float64 on the
CPU, and a concept's file holds σ along with δ, by which a loader checks that it shifts the same matrices.
That takes minutes for a large UNet, whose U, σ and Vᵀ are therefore kept in the user's cache, see `bases_of`.

Shapes: o outputs, i = in·kh·kw inputs, r = min(o, i).
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from utils.common.errors import UserError
from utils.common.files import shown
from utils.common.tensor_files import read_tensors, write_tensors
from utils.learners.learner import WRONG_BASE, Learner, Parameters, Tensors, check_names, check_shape

if TYPE_CHECKING:
    from utils.bases.base import BaseModel

Basis = tuple[Tensor, Tensor, Tensor]  # U (o, r), σ (r,), Vᵀ (r, i), float32
KEPT_FROM = 10**8  # numbers in all matrices together; fewer are decomposed in seconds
TOLERANCE = 1e-2  # of the largest singular value: rounding to half precision stays far below


def decompose(weight: Tensor) -> Basis:
    """U, σ and Vᵀ of a weight (o, i) or (o, in, kh, kw), on the weight's device."""
    place = "meta" if weight.is_meta else "cpu"
    matrix = weight.detach().to(place, torch.float64).flatten(1)
    return tuple(
        part.to(weight.device, torch.float32) for part in torch.linalg.svd(matrix, full_matrices=False)
    )


def cache_folder() -> Path:
    """Where decompositions are kept: in the user's cache, which XDG_CACHE_HOME names."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "classdiffusion" / "svd"


def bases_of(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, Basis]]:
    """(name, decomposed weight) of each module, one after the other.

    From KEPT_FROM numbers on each is kept in `cache_folder` by the digest of its weight, and read from there;
    a line says so before the first that is not there, or that the disk has no room for all of them.
    Raises UserError for a kept file that is damaged, and where none can be written.
    """
    weights = {name: module.weight.detach() for name, module in modules.items()}
    large = sum(weight.numel() for weight in weights.values()) >= KEPT_FROM
    if not large or any(weight.is_meta for weight in weights.values()):
        yield from ((name, decompose(weight)) for name, weight in weights.items())
        return
    files = {name: cache_folder() / f"{digest_of(weight)}.safetensors" for name, weight in weights.items()}
    missing = [weights[name] for name, file in files.items() if not file.is_file()]
    keeps = announce(missing) if missing else True
    for name, weight in weights.items():
        if files[name].is_file():
            yield name, read_basis(files[name], weight)
            continue
        basis = decompose(weight)
        if keeps:
            write_tensors(files[name], dict(zip(("u", "sigma", "vh"), basis, strict=True)))
        yield name, basis


def digest_of(weight: Tensor) -> str:
    """Of shape, precision and every bit of a weight."""
    numbers = weight.cpu().contiguous().flatten().view(torch.uint8).numpy()
    kind = f"{tuple(weight.shape)} {weight.dtype}".encode()
    return hashlib.blake2b(numbers.data, digest_size=20, key=kind).hexdigest()


def announce(missing: list[Tensor]) -> bool:
    """Says what is decomposed and where it is kept; whether the disk has the room."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    size = 4 * sum(weight.numel() + min(weight.flatten(1).shape) ** 2 for weight in missing)
    free, head = shutil.disk_usage(folder).free, f"decomposing {len(missing)} matrices of the UNet for SVDiff"
    if free < size:
        print(
            f"{head}, which takes minutes; not kept: {shown(folder)} has {free / 1e9:.1f} GB free, it takes "
            f"{size / 1e9:.1f} (XDG_CACHE_HOME names another place)"
        )
        return False
    print(f"{head}, once: it takes minutes; kept in {shown(folder)} ({size / 1e9:.1f} GB) for the next time")
    return True


def read_basis(path: Path, weight: Tensor) -> Basis:
    """What is kept of a weight, on its device. Raises UserError for a damaged file."""
    o, i = weight.flatten(1).shape
    found, r = read_tensors(path), min(o, i)
    if {name: tuple(each.shape) for name, each in found.items()} != {
        "u": (o, r),
        "sigma": (r,),
        "vh": (r, i),
    }:
        raise UserError(f"{shown(path)} is damaged: remove it, and it is made anew")
    return tuple(found[name].to(weight.device) for name in ("u", "sigma", "vh"))


def shifted(weight: Tensor, basis: Basis, delta: Tensor) -> Tensor:
    """W' in the weight's shape and dtype. basis: of `decompose`; delta: (r,).

    Written as W + U diag(relu(σ + δ) - σ) Vᵀ, so that δ = 0 gives W bit for bit.
    """
    u, sigma, vh = basis
    with torch.autocast(weight.device.type, enabled=False):
        change = (u * (torch.relu(sigma + delta) - sigma)) @ vh  # (o, i)
        return (weight.float() + change.view_as(weight)).to(weight.dtype)


class SpectralShift(nn.Module):
    """The parametrization of one weight; `delta` is what trains."""

    def __init__(self, basis: Basis):
        super().__init__()
        # Neither parameters nor buffers: they never change, and processes would send them at every step.
        self.basis = basis
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
    deltas, modules = {}, matrices(base.unet)
    if any(parametrize.is_parametrized(module) for module in modules.values()):
        raise UserError("the spectral learner is attached already: name it once")
    for name, basis in bases_of(modules):
        module, shift = modules[name], SpectralShift(basis)
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

    Decomposes the whole UNet again, unless it is kept (`bases_of`). Weights that were rounded to half
    precision before have slightly other singular vectors; for the exact result load the concept into a
    float32 pipeline, then cast.
    """
    modules = matrices(base.unet)
    check_names(tensors, [f"{name}.{part}" for name in modules for part in ("delta", "sigma")], "UNet", path)
    values = {}
    for name, basis in bases_of(modules):
        module = modules[name]
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

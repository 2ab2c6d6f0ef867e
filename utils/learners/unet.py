"""The whole UNet, as DreamBooth trains it: 859,520,964 numbers in 686 tensors of SD 1.5.

A concept's file holds its difference to the base in bfloat16: half the size of the weights in float32, with
an error of at most 0.4 % of each change. (Weights rounded to half precision would lose about a tenth of it.)
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from utils.learners.learner import Learner, Parameters, Tensors, check_names, check_shape, train_whole

if TYPE_CHECKING:
    from utils.bases.base import BaseModel


def attach(base: "BaseModel") -> Parameters:
    """Every parameter of the UNet."""
    return train_whole(base.unet)


def pack(base: "BaseModel", parameters: Parameters) -> Tensors:
    """The differences to the base model's own weights, which are read again, in bfloat16."""
    return differences(base.original("unet").state_dict(), parameters)


def differences(start: Tensors, parameters: Parameters) -> Tensors:
    """{name: trained - start} in bfloat16 on the CPU."""
    return {
        name: (value.detach().cpu().float() - start[name].cpu().float()).bfloat16()
        for name, value in parameters.items()
    }


def merge(base: "BaseModel", tensors: Tensors, path: Path) -> dict[str, Tensors]:
    """The UNet's weights plus their differences; motion modules keep theirs."""
    own = {k: v for k, v in base.unet.named_parameters() if ".motion_modules." not in k}
    return {"unet": added(own, tensors, "UNet", path)}


def added(own: Parameters, tensors: Tensors, owner: str, path: Path) -> Tensors:
    """{name: own + difference} in float32. Raises UserError for other names or shapes."""
    check_names(tensors, own, owner, path)
    values = {}
    for name, change in tensors.items():
        check_shape(name, change, own[name], owner, path)
        with torch.no_grad():
            values[name] = own[name].float() + change.to(own[name].device).float()
    return values


LEARNER = Learner(
    "unet",
    "UNet",
    attach,
    pack,
    merge,
    plain="the whole image model",
)

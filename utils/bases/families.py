"""The families of base models, one subclass of BaseModel each, and the only way that anything opens a model.

A model's folder says which family it is of.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from utils.bases.base import BaseModel
from utils.bases.devices import choose_device_dtype, without_progress_bars
from utils.bases.parts import check_index, load_part
from utils.bases.pretrained import base_config
from utils.bases.sd import StableDiffusion
from utils.bases.sdxl import StableDiffusionXL
from utils.bases.single_file.convert import folder_of
from utils.common.errors import UserError, short

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import nn

FAMILIES: dict[str, type[BaseModel]] = {  # _class_name in model_index.json -> family
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
}


def family_of(base: str | Path, revision: str | None = None) -> type[BaseModel]:
    """The family of a base model: a folder, a file or a Hub id (owner/name).

    Reads its model_index.json, which for a Hub id that is not cached is fetched: a few hundred bytes.
    Raises UserError unless it is a family's, its parts of their classes.
    """
    index = base_config(base, "model_index.json", revision)
    name = index.get("_class_name")
    known = " or ".join(family.title for family in FAMILIES.values())
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(f"base model {base} is a {short(name)}; give a {known}")
    check_index(index, FAMILIES[name].parts, known, base)
    return FAMILIES[name]


def check_base(base: str | Path, revision: str | None = None) -> None:
    """Raises UserError as `family_of` does."""
    family_of(base, revision)


def open_base(
    base: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    variant: str | None = None,
) -> BaseModel:
    """A base model for sampling and analyses.

    Raises UserError as `family_of`, `choose_device_dtype` and the family's `open` do.
    """
    family = family_of(base, revision)
    return family.open(base, *choose_device_dtype(device, dtype), revision, variant)


def load_base(
    base: str | Path, device: torch.device, revision: str | None = None, variant: str | None = None
) -> BaseModel:
    """A base model ready for training: float32, frozen. Raises UserError as `open_base` does."""
    return open_base(base, device, "fp32", revision, variant).freeze()


def load_pipeline(
    base: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    variant: str | None = None,
) -> "DiffusionPipeline":
    """The base model as a stock pipeline: no safety checker, no progress bars, its own scheduler.

    Raises UserError as `open_base` does.
    """
    return open_base(base, device, dtype, revision, variant).pipeline


def as_base(model: "BaseModel | DiffusionPipeline | Any") -> BaseModel:
    """A stock pipeline behind the interface of the family whose parts it has; a BaseModel as it is.

    An autoencoder is not needed: concepts do not change it.
    """
    if isinstance(model, BaseModel):
        return model
    families = [
        each
        for each in FAMILIES.values()
        if all(hasattr(model, part) for part in each.parts if part != "vae")
    ]
    if not families:
        raise TypeError(f"a {type(model).__name__} is not a pipeline of {', '.join(FAMILIES)}")
    return max(families, key=lambda family: len(family.parts))(model)


def open_part(name: str, base: str | Path) -> "nn.Module":
    """One component of a base model, float32 on the CPU.

    Raises UserError as `family_of`, `folder_of` and `load_part` do.
    """
    family_of(base)
    with without_progress_bars():
        return load_part(name, folder_of(base), torch.float32)

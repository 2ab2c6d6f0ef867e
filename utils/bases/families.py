"""The families of base models, one adapter each; a model's folder says which family it is of."""

import torch

from utils.bases.pretrained import pipeline_class
from utils.bases.sd import StableDiffusion
from utils.common.errors import UserError, short

FAMILIES = {"StableDiffusionPipeline": StableDiffusion}  # _class_name in model_index.json -> adapter


def family_of(base: str, revision: str | None = None) -> type[StableDiffusion]:
    """The adapter of a base model, a folder or a Hub id. Raises UserError for a family that has none."""
    name = pipeline_class(base, revision)
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(
            f"base model {base} is a {short(name)}; give one of {', '.join(FAMILIES)} (SD 1.x or 2.x)"
        )
    return FAMILIES[name]


def load_base(
    base: str, device: torch.device, revision: str | None = None, variant: str | None = None
) -> StableDiffusion:
    """A base model ready for training: float32, frozen. Raises UserError as `family_of` does."""
    return family_of(base, revision).load(base, device, revision, variant)

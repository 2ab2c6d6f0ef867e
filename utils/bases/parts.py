"""The parts of a base model with weights: loaded one by one, each whole and finite or refused."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, PreTrainedModel

from utils.bases.pretrained import readable
from utils.common.errors import UserError, short

WITH_WEIGHTS = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}
# Of the autoencoder, nearly all of it convolutions, which are faster so; the UNet gains nothing measurable.
VAE_LAYOUT = torch.channels_last
TARGETS = ("epsilon", "v_prediction")
OLD_BUFFER = "position_ids"  # a constant that text encoders of 2022 hold along with their weights


def check_index(
    index: dict[str, Any], parts: Mapping[str, tuple[str, ...]], known: str, base: str | Path
) -> None:
    """Raises UserError unless model_index.json names the parts of a family, of their classes.

    known: the families that there are, for messages.
    """
    for part, classes in parts.items():
        value = index.get(part)
        if not isinstance(value, list) or len(value) != 2 or value[1] not in classes:
            raise UserError(
                f"base model {base}: its model_index.json has {short(repr(value))} as {part}, "
                f"not a {classes[0]}; give a {known}"
            )


def load_parts(
    names: Iterable[str], base: str | Path, dtype: torch.dtype, revision: str | None, variant: str | None
) -> dict[str, nn.Module]:
    """{"unet": …, …}, the parts with weights among `names`, on the CPU. Raises UserError as `load_part`."""
    return {name: load_part(name, base, dtype, revision, variant) for name in names if name in WITH_WEIGHTS}


def load_part(
    name: str,
    base: str | Path,
    dtype: torch.dtype,
    revision: str | None = None,
    variant: str | None = None,
) -> nn.Module:
    """The part of this name, a key of WITH_WEIGHTS, on the CPU; the autoencoder in VAE_LAYOUT.

    Raises UserError when its files are missing, damaged, incomplete, of other shapes or not finite: the
    libraries would draw what is missing at random, and pass over what is too much.
    """
    kind = WITH_WEIGHTS[name]
    how = {"revision": revision, "variant": variant, "output_loading_info": True}
    types = {"dtype" if issubclass(kind, PreTrainedModel) else "torch_dtype": dtype}
    with readable(f"{name} of base model", base):
        part, report = kind.from_pretrained(base, subfolder=name, **how, **types)
    check_weights(part, report, f"{name} of base model {base}")
    return part.to(memory_format=VAE_LAYOUT) if kind is AutoencoderKL else part


def check_weights(module: nn.Module, report: dict[str, Any], name: str) -> None:
    """Raises UserError, beginning with `name`, unless all weights came from the file, and all are finite.

    report: what from_pretrained gives with output_loading_info.
    """
    for wrong in ("missing", "unexpected", "mismatched"):
        keys = sorted(map(str, report.get(f"{wrong}_keys") or ()))
        if keys := [key for key in keys if not key.endswith(OLD_BUFFER)]:
            raise UserError(
                f"{name} has {len(keys)} {wrong} weights, e.g. {short(keys[0])}; "
                "it is damaged or of another kind: give another"
            )
    check_finite(module, name)


def check_finite(module: nn.Module, name: str) -> None:
    """Raises UserError, beginning with `name`, for a weight that is NaN or infinite."""
    for key, value in module.named_parameters():
        if value.numel() and not all(end.isfinite() for end in value.detach().aminmax()):
            raise UserError(f"{name}: {key} is not finite; it is damaged: give another")


def check_values(parts: Any, base: str | Path) -> None:
    """Raises UserError for configurations without the numbers that training and sampling calculate with.

    parts: has unet, vae and scheduler.
    """
    factor = parts.vae.config.scaling_factor
    values = {
        "unet: sample_size": (parts.unet.config.sample_size, 1),
        "scheduler: num_train_timesteps": (parts.scheduler.config.num_train_timesteps, 1),
        "vae: scaling_factor": (factor if type(factor) is int else int(isinstance(factor, float)), 1),
    }
    for name, (value, least) in values.items():
        if type(value) is not int or value < least:
            raise UserError(f"base model {base}: {name} must be a number ≥ {least}; the model is damaged")
    if (target := parts.scheduler.config.prediction_type) not in TARGETS:
        raise UserError(f"base model {base} predicts {short(target)}; give one of {', '.join(TARGETS)}")


def read_tokenizer(base: str | Path, revision: str | None = None, name: str = "tokenizer") -> CLIPTokenizer:
    """The base's tokenizer. Raises UserError for damaged files, and for one that reads no words."""
    with readable(f"{name} of base model", base):
        tokenizer = CLIPTokenizer.from_pretrained(base, subfolder=name, revision=revision)
    if len(tokenizer) <= len(tokenizer.all_special_ids) + 1:  # without files the library makes an empty one
        raise UserError(f"base model {base} has no {name}, or one without words; give a whole one")
    if type(tokenizer.model_max_length) is not int or tokenizer.model_max_length < 3:
        raise UserError(f"base model {base}: its {name}'s model_max_length must be a number ≥ 3")
    return tokenizer

"""What a single file of a model is, from its safetensors header: names, shapes and metadata."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from utils.common.errors import UserError, short
from utils.common.files import one_line, shown

UNET, VAE = "model.diffusion_model.", "first_stage_model."
EPSILON, VELOCITY = "epsilon", "v_prediction"
PREDICTS = {EPSILON: "the noise", VELOCITY: "the velocity"}
STORED = ("F32", "F16", "BF16")
# Of a UNet of Stable Diffusion 2: how far its values spread tells the two kinds apart, as in ComfyUI.
SPREAD_OF, VELOCITY_SPREAD = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias", 0.09


@dataclass(frozen=True)
class Family:
    """A family of bases that come as one file. text: the prefix of its first text encoder. row: the base
    whose settings it takes (utils/bases/registry.py)."""

    name: str
    title: str
    pipeline: str
    row: str
    text: str


STOCK = "StableDiffusionPipeline"
SD1 = Family("sd1", "Stable Diffusion 1.x", STOCK, "sd15", "cond_stage_model.transformer.")
SD2 = Family("sd2", "Stable Diffusion 2.x", STOCK, "sd21", "cond_stage_model.model.")
SDXL = Family("sdxl", "Stable Diffusion XL", "StableDiffusionXLPipeline", "sdxl", "conditioner.embedders.0.")
WANTED = f"give a {SD1.title}, {SD2.title} or {SDXL.title} as one file"

_NO_SAFETENSORS = {  # how a file begins that is no safetensors file
    b"PK\x03\x04": "a pickled checkpoint (.ckpt), which could run code: give the model's .safetensors file",
    b"\x80": "a pickled checkpoint (.ckpt), which could run code: give the model's .safetensors file",
    b"GGUF": "a quantised GGUF file, which cannot be trained: give the model's .safetensors file",
    b"version https://git-lfs": "a Git LFS pointer, not the model: fetch it with 'git lfs pull'",
    b"{": "JSON, not a model: give the folder that it is in, or a .safetensors file",
    b"<": "a web page, not a model: download the file again, logged in if the site asks for it",
}


@dataclass(frozen=True)
class Header:
    """tensors: name -> (dtype as the file spells it, shape). metadata: texts by name."""

    path: Path
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    metadata: dict[str, str]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def any(self, *parts: str) -> bool:
        """Whether a tensor's name contains one of the parts."""
        return any(part in name for name in self.tensors for part in parts)

    def under(self, *prefixes: str) -> list[str]:
        return [name for name in self.tensors if name.startswith(prefixes)]

    def inputs(self, name: str) -> int | None:
        """The second axis of a weight: how many channels or features it reads; None without it."""
        shape = self.tensors.get(name, ("", ()))[1]
        return shape[1] if len(shape) > 1 else None


@dataclass(frozen=True)
class SingleFile:
    """A base model as one file. prediction: as diffusers' schedulers spell it; why: what says so.

    configured: the folder beside the file that has its configuration, or None for the family's own.
    """

    path: Path
    family: Family
    prediction: str
    zero_snr: bool
    why: str
    configured: Path | None

    def __str__(self) -> str:
        zero = ", zero terminal SNR" if self.zero_snr else ""
        return f"{self.family.title} in one file, predicts {PREDICTS[self.prediction]}{zero} ({self.why})"


def is_file(base: str | Path) -> bool:
    """Whether the base is a file, not a folder, a name or a Hub id."""
    return os.path.isfile(base)


def single_file(path: str | Path) -> SingleFile:
    """What the file is. Reads its header and, of a Stable Diffusion 2, one vector.

    Raises UserError, naming what it is, for any file that is not a base model of one of the families.
    """
    stat = os.stat(path)
    return _single_file(Path(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@lru_cache(maxsize=8)
def _single_file(path: Path, *stamp: int) -> SingleFile:
    header = read_header(path)
    family = _family(header)
    configured = path.with_suffix("")
    configured = configured if (configured / "model_index.json").is_file() else None
    if configured is not None:
        prediction, zero_snr = _configured_prediction(configured)
        return SingleFile(path, family, prediction, zero_snr, f"by {shown(configured)}", configured)
    prediction, why = _prediction(header, family)
    return SingleFile(path, family, prediction, "ztsnr" in header, why, None)


def read_header(path: Path) -> Header:
    """Raises UserError for a file that is not a whole safetensors file, saying what it is if that shows."""
    from safetensors import SafetensorError, safe_open

    with one_line("read", path), path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise UserError(f"base model {shown(path)} is an empty file: download it again")
    try:
        with safe_open(path, framework="np") as file:
            names = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
            tensors = {name: (each.get_dtype(), tuple(each.get_shape())) for name, each in names.items()}
            return Header(path, tensors, file.metadata() or {})
    except (SafetensorError, OSError) as error:
        for magic, what in _NO_SAFETENSORS.items():
            if start.startswith(magic):
                raise UserError(f"base model {shown(path)} is {what}") from error
        raise UserError(
            f"base model {shown(path)} is not a whole safetensors file ({short(error, 100)}): it is damaged "
            "or was not downloaded to its end; download it again"
        ) from error


def _family(header: Header) -> Family:
    """Raises UserError for what is no base model of a family, or not a whole one."""
    for what, is_it in _OTHERS.items():
        if is_it(header):
            raise UserError(f"base model {shown(header.path)} is {what}; {WANTED}")
    if f"{UNET}input_blocks.0.0.weight" not in header:
        example = short(next(iter(header.tensors), "none"))
        count = f"{len(header.tensors):,} tensors, e.g. {example}"
        raise UserError(f"base model {shown(header.path)} is of an unknown kind ({count}); {WANTED}")
    if header.under("conditioner.embedders.1."):
        family = SDXL
    else:
        family = next((each for each in (SD1, SD2) if header.under(each.text)), None)
    for part, there in (("text encoder", family), ("autoencoder", header.under(VAE))):
        if not there:
            raise UserError(f"base model {shown(header.path)} has no {part}: give the file with all parts")
    stored = {header.tensors[name][0] for name in header.under(UNET)}
    if other := sorted(stored.difference(STORED)):
        raise UserError(
            f"base model {shown(header.path)} is stored as {', '.join(other)}: give it in one of "
            f"{', '.join(STORED)}"
        )
    return family


def _alone(*names: str) -> Callable[[Header], bool]:
    """Whether the file has one of the tensors, and no UNet of the original layout."""
    return lambda header: not header.under(UNET) and any(name in header for name in names)


def _reads(channels: int) -> Callable[[Header], bool]:
    return lambda header: header.inputs(f"{UNET}input_blocks.0.0.weight") == channels


def _has(*parts: str) -> Callable[[Header], bool]:
    return lambda header: header.any(*parts)


def _is_embedding(header: Header) -> bool:
    names = set(header.tensors)
    flat = all(len(shape) <= 2 for _, shape in header.tensors.values())
    return bool(names) and flat and (len(names) == 1 or names <= {"emb_params", "clip_l", "clip_g"})


def _is_refiner(header: Header) -> bool:
    first, second = (header.under(f"conditioner.embedders.{part}.") for part in ("0.model", "1"))
    return bool(first) and not second


_OTHERS: dict[str, Callable[[Header], bool]] = {  # what is no base -> whether the file is that; in this order
    "a LoRA, which changes a base model": _has(
        "lora_up.", "lora_down.", "lora_A.", "lora_B.", "lora.up.", "hada_w1", "lokr_w1", "oft_blocks"
    ),
    "a ControlNet": _has("control_model.", "input_hint_block.", "controlnet_cond_embedding."),
    "an AnimateDiff motion module": _has("motion_modules."),
    "a Stable Diffusion 3": _has("joint_blocks."),
    "a Flux": _has("double_blocks.", "single_transformer_blocks."),
    "a Playground 2.5": _has("edm_mean"),
    "an autoencoder (VAE) alone": _alone(
        "decoder.conv_in.weight", "first_stage_model.decoder.conv_in.weight", "vae.decoder.conv_in.weight"
    ),
    "a UNet alone, of a pipeline folder": _alone("down_blocks.0.resnets.0.conv1.weight"),
    "a UNet alone": _alone("input_blocks.0.0.weight"),
    "a text encoder alone": _alone(
        "text_model.embeddings.token_embedding.weight", "embeddings.token_embedding.weight"
    ),
    "a textual inversion embedding": _is_embedding,
    "an inpainting model": _reads(9),
    "an InstructPix2Pix model": _reads(8),
    "a depth-to-image model": _reads(5),
    "an upscaler": _reads(7),
    "the refiner of Stable Diffusion XL": _is_refiner,
    "a Stable unCLIP": _has("noise_augmentor.", "embedder.model.visual."),
    "a latent consistency model": _has("time_embed.cond_proj."),
}


def _prediction(header: Header, family: Family) -> tuple[str, str]:
    """What the UNet predicts, and what says so: a marker, the metadata, or the weights."""
    if "v_pred" in header:
        return VELOCITY, "by its marker v_pred"
    said = header.metadata.get("modelspec.prediction_type", "").lower()
    if said in ("v", "epsilon"):
        return {"v": VELOCITY}.get(said, EPSILON), "by its metadata"
    if family is SD2 and SPREAD_OF in header:
        return VELOCITY if _spread(header.path) > VELOCITY_SPREAD else EPSILON, "by its weights"
    return EPSILON, f"as {family.title} does"


def _spread(path: Path) -> float:
    """The standard deviation of the vector SPREAD_OF."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:  # NumPy has no bfloat16
        return float(file.get_tensor(SPREAD_OF).float().std(unbiased=False))


def _configured_prediction(folder: Path) -> tuple[str, bool]:
    """As the folder's scheduler says; other values are refused where the base is opened."""
    from utils.bases.pretrained import read_config

    config: dict[str, Any] = read_config(folder, "configuration", "scheduler/scheduler_config.json")
    said = config.get("prediction_type", EPSILON)
    return said if said in PREDICTS else EPSILON, bool(config.get("rescale_betas_zero_snr"))

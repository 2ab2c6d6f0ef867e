"""Images and prompts as unit vectors: CLIP's projected features, a DINO's CLS token.

N images or prompts, B of a batch, L tokens; P CLIP's projection width, D width of a ViT, S image side.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import (
    BatchEncoding,
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Model,
    PreTrainedModel,
    ViTImageProcessorPil,
    ViTModel,
)
from transformers.image_processing_utils import BaseImageProcessor

from utils.bases.devices import choose_device_dtype, without_progress_bars
from utils.bases.parts import check_finite
from utils.bases.pretrained import read_config, readable
from utils.common.errors import UserError, short

CLIP_ID = "openai/clip-vit-base-patch32"
DINO_ID = "facebook/dino-vits16"
DINO_SIZE = 224  # every DINO of Caron et al. 2021 was trained at this side
DINO_MEAN, DINO_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's
BICUBIC = 3


class ClipEncoder:
    """A CLIPModel's unit features of images and prompts, in its projected space.

    model: a folder or a Hub id; the field's convention is CLIP_ID, and scores by another CLIP (ViT-L/14) are
    not comparable with it. device: default the fastest here; float32 on a CPU, half precision on a GPU.
    Raises UserError as `check_clip` and `choose_device_dtype` do, before it loads.
    """

    def __init__(self, model: str | Path = CLIP_ID, device: str | torch.device | None = None):
        check_clip(model)
        self.device, dtype = choose_device_dtype(device)
        self.model_id = str(model)
        self.model = load_judge(CLIPModel, model, dtype=dtype).to(self.device).eval()
        with readable("CLIP model", model):
            self.processor = CLIPImageProcessorPil.from_pretrained(model)
            self.tokenizer = CLIPTokenizer.from_pretrained(model)

    def image_features(self, images: Iterable[Image.Image], batch_size: int = 64) -> Tensor:
        """(N, P) float32 unit vectors on the CPU. Images are prepared as the model's own processor says;
        an iterator is read batch by batch, so memory does not grow with N."""

        def encode(batch: list[Image.Image]) -> Tensor:
            pixels = pixel_values(self.processor, batch).to(self.device, self.model.dtype)
            return self.model.get_image_features(pixel_values=pixels).pooler_output

        return unit_features(encode, images, batch_size, self.model.config.projection_dim)

    def text_features(self, prompts: Iterable[str], batch_size: int = 256) -> Tensor:
        """(N, P) float32 unit vectors on the CPU.

        Raises UserError for a prompt longer than the model reads (77 tokens in CLIP, 32 in toon's), where
        others cut: words that are not read would be scored as if they had been obeyed. `check_clip_prompts`
        checks that before anything is drawn.
        """
        limit = self.model.config.text_config.max_position_embeddings

        def encode(batch: list[str]) -> Tensor:
            tokens = _tokens(self.tokenizer, batch, limit, self.model_id).to(self.device)
            return self.model.get_text_features(**tokens).pooler_output

        return unit_features(encode, prompts, batch_size, self.model.config.projection_dim)


class DinoEncoder:
    """The CLS token of a ViTModel, or of a Dinov2Model, as a unit vector.

    model: a folder or a Hub id; the field's convention is DINO_ID. A model for DINO_SIZE pixels gets what the
    field means by DINO-I, whatever its own processor says (those on the Hub squash to a square, and early
    ones have another filter, mean and deviation): shortest side to 256 bicubic, centre crop 224, ImageNet's
    mean and deviation. A ViTModel for another size, as data/toon/dino is, and a Dinov2Model get their own
    processor's preparation.
    device: as for ClipEncoder. Raises UserError as `check_dino` and `choose_device_dtype` do.
    """

    def __init__(self, model: str | Path = DINO_ID, device: str | torch.device | None = None):
        check_dino(model)
        self.device, dtype = choose_device_dtype(device)
        self.model_id = str(model)
        second = read_config(model, "DINO model")["model_type"] == "dinov2"
        how = (Dinov2Model, {}) if second else (ViTModel, {"add_pooling_layer": False})
        self.model = load_judge(how[0], model, dtype=dtype, **how[1]).to(self.device).eval()
        published = not second and self.model.config.image_size == DINO_SIZE
        own = BitImageProcessorPil if second else ViTImageProcessorPil
        with readable("DINO model", model):
            self.processor = dino_processor() if published else own.from_pretrained(model)

    def image_features(self, images: Iterable[Image.Image], batch_size: int = 64) -> Tensor:
        """(N, D) float32 unit vectors on the CPU; an iterator is read batch by batch."""

        def encode(batch: list[Image.Image]) -> Tensor:
            pixels = pixel_values(self.processor, batch).to(self.device, self.model.dtype)
            return self.model(pixel_values=pixels).last_hidden_state[:, 0]  # CLS

        return unit_features(encode, images, batch_size, self.model.config.hidden_size)


def dino_processor() -> BaseImageProcessor:
    """The preparation of DINO's own evaluation (Caron et al. 2021): resize 256 bicubic, centre crop 224."""
    return ViTImageProcessorPil(
        size={"shortest_edge": 256},
        resample=BICUBIC,
        do_center_crop=True,
        crop_size={"height": DINO_SIZE, "width": DINO_SIZE},
        image_mean=DINO_MEAN,
        image_std=DINO_STD,
    )


def check_clip(model: str | Path) -> None:
    """Raises UserError unless `model` is a CLIPModel with tokenizer and image processor.

    Reads its config.json, which for a Hub id that is not cached is fetched: a few hundred bytes.
    """
    config = read_config(model, "CLIP model")
    if config.get("model_type") != "clip":
        raise UserError(
            f"CLIP model {model} is a {config.get('model_type')}; give a CLIPModel, e.g. {CLIP_ID}"
        )
    check_files(model, "image processor", "preprocessor_config.json", "processor_config.json")
    check_files(model, "tokenizer", "tokenizer.json", "vocab.json")


def check_clip_prompts(model: str | Path, prompts: Iterable[str]) -> None:
    """Raises UserError for a prompt longer than the CLIPModel reads; loads its tokenizer and config only."""
    check_clip(model)
    with readable("CLIP model", model):
        limit = CLIPConfig.from_pretrained(model).text_config.max_position_embeddings
        tokenizer = CLIPTokenizer.from_pretrained(model)
        for batch in batches(prompts, 256):
            _tokens(tokenizer, batch, limit, str(model))


def check_dino(model: str | Path) -> None:
    """Raises UserError unless `model` is a ViTModel or Dinov2Model, with an image processor if it needs one.

    Reads its config.json, which for a Hub id that is not cached is fetched: a few hundred bytes.
    """
    config = read_config(model, "DINO model")
    kind = config.get("model_type")
    if kind not in ("vit", "dinov2"):
        raise UserError(f"DINO model {model} is a {kind}; give a ViTModel, e.g. {DINO_ID}, or a Dinov2Model")
    if kind == "dinov2" or config.get("image_size") != DINO_SIZE:
        check_files(model, "image processor", "preprocessor_config.json", "processor_config.json")


def load_judge(model_class: type[PreTrainedModel], model: str | Path, **settings: Any) -> PreTrainedModel:
    """Raises UserError when weights are missing, which the library would draw at random."""
    with without_progress_bars(), readable("model", model):
        loaded, found = model_class.from_pretrained(model, output_loading_info=True, **settings)
    if found["missing_keys"]:
        raise UserError(
            f"model {model} lacks {len(found['missing_keys'])} tensors of a {model_class.__name__}, e.g. "
            f"{sorted(found['missing_keys'])[0]}; its scores would be random: give a complete one"
        )
    check_finite(loaded, f"model {model}")
    return loaded


def _tokens(tokenizer: CLIPTokenizer, prompts: list[str], limit: int, model: str) -> BatchEncoding:
    """input_ids, attention_mask: (B, L), L that of the longest prompt, at most `limit`."""
    tokens = tokenizer(prompts, padding=True, return_tensors="pt")
    for prompt, length in zip(prompts, tokens.attention_mask.sum(1).tolist(), strict=True):
        if length > limit:
            raise UserError(
                f"prompt {short(prompt)!r} has {length} tokens; {model} reads {limit}: shorten it"
            )
    return tokens


def pixel_values(processor: BaseImageProcessor, images: list[Image.Image]) -> Tensor:
    """(B, 3, S, S)"""
    return processor([image.convert("RGB") for image in images], return_tensors="pt").pixel_values


@torch.no_grad()
def unit_features(
    encode: Callable[[list], Tensor], items: Iterable[Any], batch_size: int, width: int
) -> Tensor:
    """(N, width) float32 unit vectors on the CPU."""
    features = [F.normalize(encode(batch).float(), dim=1).cpu() for batch in batches(items, batch_size)]
    return torch.cat(features) if features else torch.empty(0, width)


def batches(items: Iterable[Any], size: int) -> Iterator[list]:
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch


def check_files(model: str | Path, part: str, *names: str) -> None:
    """A folder must hold one of the files; what is on the Hub is fetched when it loads."""
    if Path(model).is_dir() and not any((Path(model) / name).is_file() for name in names):
        raise UserError(f"model folder {model} has no {part} ({names[0]}); save it there too")

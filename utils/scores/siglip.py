"""SigLIP's features of images and prompts (Zhai et al. 2023, arXiv 2303.15343), a second judge besides CLIP.

N images or prompts, B of a batch, L tokens that the model reads, P its width.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, SiglipConfig, SiglipImageProcessorPil, SiglipModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from utils.bases.devices import choose_device_dtype
from utils.bases.pretrained import read_config, readable
from utils.common.errors import UserError, short
from utils.scores.encoders import check_files, load_judge, pixel_values, unit_features

SIGLIP_ID = "google/siglip-base-patch16-224"


class SiglipEncoder:
    """A SiglipModel's unit features. model: a folder or a Hub id. Raises UserError as `check_siglip` does."""

    def __init__(self, model: str | Path, device: str | torch.device | None = None):
        check_siglip(model)
        self.device, dtype = choose_device_dtype(device)
        self.model_id = str(model)
        self.model = load_judge(SiglipModel, model, dtype=dtype).to(self.device).eval()
        self.width = self.model.config.text_config.projection_size
        with readable("SigLIP model", model):
            self.processor = SiglipImageProcessorPil.from_pretrained(model)
            self.tokenizer = AutoTokenizer.from_pretrained(model)

    def image_features(self, images: Iterable[Image.Image], batch_size: int = 64) -> Tensor:
        """(N, P) float32 unit vectors on the CPU."""

        def encode(batch: list[Image.Image]) -> Tensor:
            pixels = pixel_values(self.processor, batch).to(self.device, self.model.dtype)
            return self.model.get_image_features(pixel_values=pixels).pooler_output

        return unit_features(encode, images, batch_size, self.width)

    def text_features(self, prompts: Iterable[str], batch_size: int = 256) -> Tensor:
        """(N, P) float32 unit vectors on the CPU. Raises UserError for a prompt that is too long."""
        length = self.model.config.text_config.max_position_embeddings

        def encode(batch: list[str]) -> Tensor:
            ids = _ids(self.tokenizer, batch, length, self.model_id).to(self.device)
            return self.model.get_text_features(input_ids=ids).pooler_output

        return unit_features(encode, prompts, batch_size, self.width)


def check_siglip(model: str | Path) -> None:
    """Raises UserError unless `model` is a SiglipModel with tokenizer and image processor."""
    kind = read_config(model, "SigLIP model").get("model_type")
    if kind != "siglip":
        raise UserError(f"SigLIP model {model} is a {kind}; give a SiglipModel, e.g. {SIGLIP_ID}")
    check_files(model, "image processor", "preprocessor_config.json", "processor_config.json")
    check_files(model, "tokenizer", "tokenizer.json", "tokenizer_config.json", "spiece.model")


def check_siglip_prompts(model: str | Path, prompts: Iterable[str]) -> None:
    """Raises UserError for a prompt longer than the model reads; loads its tokenizer and config only."""
    check_siglip(model)
    with readable("SigLIP model", model):
        length = SiglipConfig.from_pretrained(model).text_config.max_position_embeddings
        _ids(AutoTokenizer.from_pretrained(model), list(prompts), length, str(model))


def _ids(tokenizer: PreTrainedTokenizerBase, prompts: list[str], length: int, model: str) -> Tensor:
    """(B, L) padded to the model's whole length, as it was trained: it has no mask of the padding."""
    rows = tokenizer(prompts, padding="max_length", max_length=length).input_ids
    for prompt, row in zip(prompts, rows, strict=True):
        if len(row) > length:
            raise UserError(
                f"prompt {short(prompt)!r} has {len(row)} tokens; {model} reads {length}: shorten it"
            )
    return torch.tensor(rows)

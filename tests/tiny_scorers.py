"""A CLIP and a DINO small enough for a test: random weights, stock classes and processors."""

from pathlib import Path

import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from tests.tiny_blip import write_blip
from tests.tiny_models import write_tokenizer

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = TOWER | {"image_size": 16, "patch_size": 8}
SQUARE = {"height": 16, "width": 16}


def write_scorers(folder: Path) -> dict[str, str]:
    """{"clip": its folder, "dino": …, "blip": …}, all of random weights."""
    torch.manual_seed(0)
    words = len(write_tokenizer(folder / "clip"))
    text = TOWER | {"vocab_size": words, "max_position_embeddings": 24, "eos_token_id": 2}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8))
    _stir(clip).save_pretrained(folder / "clip")
    CLIPImageProcessorPil(size=SQUARE, do_center_crop=False).save_pretrained(folder / "clip")
    _stir(ViTModel(ViTConfig(**VISION), add_pooling_layer=False)).save_pretrained(folder / "dino")
    ViTImageProcessorPil(size=SQUARE).save_pretrained(folder / "dino")
    write_blip(folder / "blip", "BLIP-1")
    return {name: str(folder / name) for name in ("clip", "dino", "blip")}


@torch.no_grad()
def _stir(model: PreTrainedModel) -> PreTrainedModel:
    """Large weights: as initialised, every image would have nearly the same features."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model

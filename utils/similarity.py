"""Likeness between pictures as a vision-language model sees it.

N generated pictures, M real pictures, P projection width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPModel
from transformers.image_processing_utils import BaseImageProcessor


@torch.no_grad()
def clip_image_features(
    model: CLIPModel, processor: BaseImageProcessor, pictures: Sequence[Image.Image], batch_size: int = 64
) -> Tensor:
    """(N, P) float32 unit vectors: CLIP's projected image embeddings."""
    features = []
    for start in range(0, len(pictures), batch_size):
        batch = [picture.convert("RGB") for picture in pictures[start : start + batch_size]]
        pixel_values = processor(images=batch, return_tensors="pt").pixel_values.to(model.device, model.dtype)
        pooled = model.vision_model(pixel_values=pixel_values).pooler_output  # (B, D)
        features.append(F.normalize(model.visual_projection(pooled).float(), dim=-1))
    return torch.cat(features)


def clip_i(generated: Tensor, real: Tensor) -> float:
    """CLIP-I (DreamBooth, Ruiz et al. 2023): mean cosine over all generated x real pairs, in [-1, 1].

    generated: (N, P), real: (M, P), unit vectors.
    """
    return (generated @ real.T).mean().item()

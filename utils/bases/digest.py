"""A short digest of a base model, by which a concept is known to meet the base that it was trained on."""

import hashlib

import torch
from torch import nn


def base_digest(unet: nn.Module, *text_encoders: nn.Module) -> str | None:
    """16 hexadecimal digits of a few of the weights, rounded to float16; None for bfloat16, which has lost
    them.

    The first and last convolution of the UNet and the first 256 rows of each token table: enough to tell
    models apart, and the same for a model stored in float32 and in float16.
    """
    weights = [unet.conv_in.weight, unet.conv_out.weight]
    for text_encoder in text_encoders:
        table = text_encoder.get_input_embeddings()
        weights.append(getattr(table, "table", table).weight[:256])  # behind modifier tokens
    if any(weight.dtype not in (torch.float32, torch.float16) for weight in weights):
        return None
    digest = hashlib.sha256()
    for weight in weights:
        digest.update(weight.detach().to("cpu", torch.float16).numpy().tobytes())
    return digest.hexdigest()[:16]

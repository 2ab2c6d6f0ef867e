"""The trained key and value matrices of the UNet's cross-attention, in place, with BOS detached.

Shapes: B images, L tokens, D text width, C channels of an attention layer.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from utils.learners.learner import Learner, Parameters, Tensors, check_names, check_shape

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

    from utils.bases.base import BaseModel


def trainable_kv(unet: "UNet2DConditionModel") -> dict[str, nn.Parameter]:
    """Freezes the UNet but for `to_k` and `to_v` of every cross-attention (attn2), which become float32.

    Returns {"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (C, D), …}, the parameters
    themselves. The matrices are trained where they stand, without an attention processor: the first output is
    the base model's, attention stays fused, and nothing is left to merge. Gradients are those of diffusers'
    CustomDiffusionAttnProcessor. Call once, and before the rest takes half precision, which would round K
    and V too.
    """
    unet.requires_grad_(False)
    for name, attention in unet.named_modules():
        if name.endswith(".attn2"):
            for projection in (attention.to_k, attention.to_v):
                projection.float().requires_grad_(True)
                projection.register_forward_pre_hook(cast_input)
                projection.register_forward_hook(partial(detach_bos, query=attention.to_q))
    kv = {name: weight for name, weight in unet.named_parameters() if weight.requires_grad}
    assert kv, "the UNet has no cross-attention"
    return kv


def cast_input(projection: nn.Linear, args: tuple[Tensor]) -> Tensor:
    """Text features (B, L, D) of a half-precision model, in the float32 of the trained weight."""
    return args[0].to(projection.weight.dtype)


def detach_bos(projection: nn.Linear, args: tuple[Tensor], output: Tensor, query: nn.Linear) -> Tensor:
    """(B, L, C) keys or values in the queries' dtype; token 0 keeps its value but passes no gradient.

    Custom Diffusion's rule: BOS is the same in every prompt, so what it learned would reach every prompt.
    A hook on the module's forward, so that gradient checkpointing's recomputation goes through it too.
    """
    return torch.cat([output[:, :1].detach(), output[:, 1:]], dim=1).to(query.weight.dtype)


def attach(base: "BaseModel") -> Parameters:
    """K and V of every cross-attention of the base's UNet."""
    return trainable_kv(base.unet)


def pack(base: "BaseModel", parameters: Parameters) -> Tensors:
    """The matrices themselves, under the UNet's names; utils/concepts/save.py writes the official layout."""
    return dict(parameters)


def merge(base: "BaseModel", tensors: Tensors, path: Path) -> dict[str, Tensors]:
    """The matrices in the place of the UNet's: all attn2.to_k/to_v, or all of attn2, no less and no more."""
    # A motion module's attn2 attends to frames, not to text.
    cross = {k: v for k, v in base.unet.named_parameters() if ".attn2." in k and ".attentions." in k}
    kv = {name for name in cross if name.endswith((".to_k.weight", ".to_v.weight"))}
    trained_all = bool(tensors.keys() & (cross.keys() - kv))  # HF's and Adobe's --freeze_model crossattn
    check_names(tensors, cross if trained_all else kv, "UNet", path)
    for name, value in tensors.items():
        check_shape(name, value, cross[name], "UNet", path)
    return {"unet": {name: value.to(cross[name].device).float() for name, value in tensors.items()}}


LEARNER = Learner(
    "cross_attention_kv",
    "K/V",
    attach,
    pack,
    merge,
    exact=True,
    layout="official",
    plain="how images follow words (keys and values)",
)

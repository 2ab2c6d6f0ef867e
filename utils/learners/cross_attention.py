"""The whole cross-attention of the UNet: keys, values, queries and the output projection.

Custom Diffusion's `--freeze_model crossattn`, for concepts with fine detail, such as faces. Its files have
Hugging Face's layout, in which K/V concepts are a part, so that one reader serves both.

Shapes: B images, L tokens or pixels, D their width, C channels of an attention layer.
"""

from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn

from utils.learners.cross_attention_kv import cast_input, detach_bos, merge, pack
from utils.learners.learner import Learner, Parameters

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

    from utils.bases.base import BaseModel


def trainable_cross_attention(unet: "UNet2DConditionModel") -> Parameters:
    """Freezes the UNet but for every attn2, whose to_q, to_k, to_v and to_out.0 become float32.

    Returns {"….attn2.to_out.0.bias": (C,), "….attn2.to_out.0.weight": (C, C), "….attn2.to_k.weight": (C, D),
    …}, the parameters themselves. BOS passes no gradient to K and V, as in diffusers'
    CustomDiffusionAttnProcessor with train_q_out. Call before the rest takes half precision.
    """
    unet.requires_grad_(False)
    parameters: Parameters = {}
    for name, attention in unet.named_modules():
        if not name.endswith(".attn2"):
            continue
        frozen = unet.get_submodule(f"{name.removesuffix('2')}1").to_q  # of the activations' dtype
        for projection in (attention.to_k, attention.to_v):
            projection.register_forward_hook(partial(detach_bos, query=frozen))
        for projection in (attention.to_q, attention.to_out[0]):
            projection.register_forward_hook(partial(_cast_output, like=frozen))
        for projection in (attention.to_q, attention.to_k, attention.to_v, attention.to_out[0]):
            projection.float().requires_grad_(True)
            projection.register_forward_pre_hook(cast_input)
        parameters |= {f"{name}.{key}": value for key, value in attention.named_parameters()}
    trained = {name: value for name, value in parameters.items() if value.requires_grad}
    assert trained, "the UNet has no cross-attention"
    return trained


def _cast_output(projection: nn.Linear, args: tuple[Tensor], output: Tensor, like: nn.Linear) -> Tensor:
    """(B, L, C) in the dtype of the frozen layer `like`."""
    return output.to(like.weight.dtype)


def attach(base: "BaseModel") -> Parameters:
    """K, V, Q and the output projection of every cross-attention of the base's UNet."""
    return trainable_cross_attention(base.unet)


LEARNER = Learner(
    "cross_attention",
    "K/V/Q/out",
    attach,
    pack,
    merge,  # both K/V's and this
    exact=True,
    layout="official",
    plain="how images follow words (the whole cross-attention)",
)

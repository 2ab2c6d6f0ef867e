"""The cross-attention layers of a UNet."""

from torch import nn


def cross_attention_layers(unet: nn.Module) -> list[str]:
    """Names of the UNet's cross-attention layers in the order of their execution: down, middle, up.

    `named_modules` has the middle block last. A motion module's attn2, which attends to frames, is left out.
    """
    names = [name for name, _ in unet.named_modules() if name.endswith(".attn2") and ".attentions." in name]
    return [name for part in ("down_blocks.", "mid_block.", "up_blocks.") for name in names if part in name]

"""The cross-attention layers of a UNet."""

from torch import nn


def cross_attention_layers(unet: nn.Module) -> list[str]:
    """Names of the UNet's cross-attention layers in the order of their execution: down, middle, up.

    `named_modules` has the middle block last. A motion module's attn2, which attends to frames, is left out.
    """
    names = [name for name, _ in unet.named_modules() if name.endswith(".attn2") and ".attentions." in name]
    return [name for part in ("down_blocks.", "mid_block.", "up_blocks.") for name in names if part in name]


def attention_sides(unet: nn.Module, side: int) -> list[int]:
    """The sides of the cross-attention's maps for latents of this side, largest first.

    Each block but the last halves the side on the way down; those on the way up have the same in reverse.
    """
    last, sides = len(unet.down_blocks) - 1, set()
    for name in cross_attention_layers(unet):
        part, number = name.split(".")[:2]
        halvings = {"down_blocks": int, "up_blocks": lambda n: last - int(n)}.get(part, lambda n: last)
        sides.add(side // 2 ** halvings(number))
    return sorted(sides, reverse=True)

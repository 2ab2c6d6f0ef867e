"""One row of each modifier token for every cross-attention layer (extended textual inversion, P+).

A caption is encoded once for each layer, with that layer's rows. The copies stay one tensor, side by side,
and every layer cuts out its own; so whoever encodes text or calls the UNet, in training, sampling or clips,
needs to know nothing of it. All is done by hooks without a state, which gradient checkpointing may call
again.

Shapes: B captions, L tokens, G layers, K modifier tokens, D text width.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from utils.bases.attention import cross_attention_layers
from utils.common.errors import UserError
from utils.learners.learner import Learner, Parameters, Tensors, check_count, check_names, check_shape

if TYPE_CHECKING:
    from utils.bases.base import BaseModel

KOHYA = ("IN01 IN02 IN04 IN05 IN07 IN08 MID " + " ".join(f"OUT{n:02}" for n in range(3, 12))).split()


class LayerRows(nn.Module):
    """The rows, (G·K, D): row g·K + k is token k's in layer g."""

    def __init__(self, rows: Tensor, token_ids: list[int]):
        """rows: (G·K, D), copied as float32; token_ids: K ids."""
        super().__init__()
        self.rows = nn.Parameter(rows.detach().float().clone())
        self.token_ids = token_ids

    @property
    def layers(self) -> int:
        return len(self.rows) // len(self.token_ids)

    def replace(self, module: nn.Module, args: tuple[Tensor], embeds: Tensor) -> Tensor:
        """Hook of the token table: ids (B·G, L), a caption's G copies in a row -> embeds (B·G, L, D)."""
        ids = args[0]
        layer = torch.arange(len(ids), device=ids.device) % self.layers  # (B·G,)
        for k, token_id in enumerate(self.token_ids):
            rows = self.rows[layer * len(self.token_ids) + k].to(embeds.dtype)  # (B·G, D)
            embeds = torch.where((ids == token_id)[..., None], rows[:, None], embeds)
        return embeds


def layer_keys(unet: nn.Module) -> list[str]:
    """What a concept's file calls each layer: kohya's names (IN01, …, MID, …, OUT11) where the UNet has SD
    1.5's 16 layers in SD 1.5's places, else the layers' own names."""
    names, keys = cross_attention_layers(unet), []
    for name in names:
        side, *place = name.split(".")
        if side == "mid_block":
            keys.append("MID")
        else:
            block, layer = int(place[0]), int(place[2])
            keys.append(
                f"IN{3 * block + layer + 1:02}" if side == "down_blocks" else f"OUT{3 * block + layer:02}"
            )
    return keys if keys == KOHYA else names


def _copies(
    layers: int, length: int, encoder: nn.Module, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict]:
    """Pre-hook of the text encoder: every caption G times in a row.

    A stock pipeline pads its negative prompt to the width of the prompt's states, G·L, and is cut to L here,
    ending as it would have ended.
    """
    given = {"input_ids": args[0]} | kwargs if args else kwargs
    ids = given["input_ids"]
    if ids.shape[1] == layers * length:
        given["input_ids"] = torch.cat([ids[:, : length - 1], ids[:, -1:]], dim=1)
    return (), {
        name: value.repeat_interleave(layers, dim=0) if isinstance(value, Tensor) else value
        for name, value in given.items()
    }


def _side_by_side(layers: int, encoder: nn.Module, args: tuple, output: Any) -> Any:
    """Hook of the text encoder: last_hidden_state (B·G, L, D) -> (B, G·L, D)."""
    output.last_hidden_state = output.last_hidden_state.unflatten(0, (-1, layers)).flatten(1, 2)
    return output


def _cut(
    layer: int, layers: int, length: int, attention: nn.Module, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict]:
    """Pre-hook of a cross-attention: encoder_hidden_states (B, G·L, D) -> the layer's own (B, L, D)."""
    states = kwargs["encoder_hidden_states"]
    if states.shape[1] != layers * length:
        raise ValueError(
            f"text states {tuple(states.shape)}: {layers} layers need {layers} x {length} tokens"
        )
    return args, kwargs | {"encoder_hidden_states": states[:, layer * length : (layer + 1) * length]}


def hook_unet(unet: nn.Module, layers: int, length: int) -> None:
    """Lets every cross-attention cut out its own text states. length: L, the tokenizer's limit."""
    names = cross_attention_layers(unet)
    assert len(names) == layers, f"{len(names)} layers in the UNet, rows for {layers}"
    for layer, name in enumerate(names):
        hook = partial(_cut, layer, layers, length)
        unet.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)


def put_in(text_encoder: nn.Module, unet: nn.Module, rows: LayerRows, length: int) -> None:
    """The rows as a part of the text encoder (`text_encoder.layer_rows`), and all hooks."""
    assert not hasattr(text_encoder, "layer_rows"), "layer rows installed twice"
    text_encoder.layer_rows = rows
    text_encoder.get_input_embeddings().register_forward_hook(rows.replace)
    text_encoder.register_forward_pre_hook(partial(_copies, rows.layers, length), with_kwargs=True)
    text_encoder.register_forward_hook(partial(_side_by_side, rows.layers))
    hook_unet(unet, rows.layers, length)


def hook_copy(base: "BaseModel", unet: nn.Module) -> None:
    """Hooks for a UNet made from the base's weights; nothing where the base has no layer rows."""
    if hasattr(base.text_encoder, "layer_rows"):
        hook_unet(unet, base.text_encoder.layer_rows.layers, base.tokenizer.model_max_length)


def attach(base: "BaseModel") -> Parameters:
    """A copy of the tokens' first rows for every layer, (G·K, D)."""
    start = base.rows["rows"]  # (K, D)
    layers = len(cross_attention_layers(base.unet))
    first = base.text_encoder.get_input_embeddings().table.num_embeddings
    rows = LayerRows(start.repeat(layers, 1), list(range(first, first + len(start))))
    put_in(base.text_encoder, base.unet, rows, base.tokenizer.model_max_length)
    return {"rows": rows.rows}


def pack(base: "BaseModel", parameters: Parameters) -> Tensors:
    """{layer: (K, D)}, rows in the order of the concept's tokens. With one token: the layout of kohya's XTI.

    The token files next to it hold the rows from which training started.
    """
    keys = layer_keys(base.unet)
    return dict(zip(keys, parameters["rows"].unflatten(0, (len(keys), -1)), strict=True))


def merge(base: "BaseModel", tensors: Tensors, path: Path) -> dict[str, Tensors]:
    """No weight of the base changes (see `install`); only checks that layers and width fit."""
    check_names(tensors, layer_keys(base.unet), "UNet's cross-attention", path)
    width = base.text_encoder.get_input_embeddings().weight.shape[1]
    for name, value in tensors.items():
        check_shape(name, value, torch.empty(len(next(iter(tensors.values()))), width), "text encoder", path)
        if not value.isfinite().all():
            raise UserError(f"{path}: {name} is not finite")
    return {}


def install(base: "BaseModel", tensors: Tensors, token_ids: dict[str, int], path: Path) -> None:
    """Puts checked rows into a plain base whose tokenizer has the tokens."""
    check_count(len(next(iter(tensors.values()))), token_ids, path)
    encoder = base.text_encoder
    rows = LayerRows(torch.cat([tensors[key] for key in layer_keys(base.unet)]), list(token_ids.values()))
    rows.requires_grad_(False).to(encoder.device)
    put_in(encoder, base.unet, rows, base.tokenizer.model_max_length)


LEARNER = Learner(
    "layer_rows",
    "rows of each layer",
    attach,
    pack,
    merge,
    "token_learning_rate",
    text=True,
    install=install,
    hook_copy=hook_copy,
    layered=True,
    tokens_only=True,
    one_vector=True,
    plain="the new word, once for each layer",
    one_encoder=True,
)

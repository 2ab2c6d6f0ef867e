"""A network that gives a modifier token another row at every timestep and cross-attention layer (NeTI).

Alaluf et al. 2023, arXiv:2305.15391. A mapper reads (t, layer) and gives two vectors: the row that stands for
the token, and a bypass that turns the text encoder's output at the token's
place, for the values alone. The timestep is known to the UNet only, so captions with a token are encoded
there, once for each layer: until then their text states are the ids, spelled out. Whoever encodes text or
calls the UNet, in training, sampling or clips, needs to know nothing of it, as with layer rows; what reads
text states by themselves has to refuse such a concept (`Learner.timed`). All is done by hooks without a
state.

Shapes: B captions, L tokens, G layers, K modifier tokens, D text width, M marked captions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.bases.attention import cross_attention_layers
from utils.common.errors import UserError
from utils.common.seeds import ITEM_SEEDS
from utils.learners.learner import Learner, Parameters, Tensors, check_count, check_names, check_shape
from utils.learners.mapper_network import HIDDEN, Mappers, kept_in_training

if TYPE_CHECKING:
    from utils.bases.base import BaseModel

BYPASS = 0.2  # length of the bypass, of the state's, as published
MARK, DIGIT = 2.0**14, 64  # bfloat16 and float16 hold the mark and every digit exactly


def spell(ids: Tensor, width: int) -> Tensor:
    """Ids (M, L) -> what stands for their text states, (M, L, D): the mark, three digits, zeros."""
    digits = [torch.full_like(ids, int(MARK)), ids // DIGIT**2, ids // DIGIT % DIGIT, ids % DIGIT]
    return F.pad(torch.stack(digits, dim=-1).float(), (0, width - 4))


def read_ids(states: Tensor) -> Tensor:
    """The ids (M, L) that `spell` has spelled, from states (M, L, D) of any precision."""
    high, middle, low = states[..., 1:4].long().unbind(-1)
    return high * DIGIT**2 + middle * DIGIT + low


def _spelled(mappers: Mappers, encoder: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
    """Hook of the text encoder: captions with a token wait, as ids, for their timestep."""
    ids = kwargs.get("input_ids", args[0] if args else None)
    waits = torch.isin(ids, torch.tensor(mappers.token_ids, device=ids.device)).any(dim=1)  # (B,)
    states = output.last_hidden_state
    spelled = spell(ids, states.shape[-1]).to(states)
    output.last_hidden_state = torch.where(waits[:, None, None], spelled, states)
    return output


@contextmanager
def _rows_in_place(table: nn.Module, mappers: Mappers, rows: Tensor) -> Iterator[None]:
    """While it lasts, the table gives the tokens `rows`, (K, N, D), in the N captions it is asked for."""

    def replace(module: nn.Module, args: tuple[Tensor], embeds: Tensor) -> Tensor:
        for token_id, row in zip(mappers.token_ids, rows, strict=True):
            embeds = torch.where((args[0] == token_id)[..., None], row[:, None].to(embeds), embeds)
        return embeds

    hook = table.register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()


def encode_at(encoder: nn.Module, ids: Tensor, timesteps: Tensor, kept: Tensor) -> Tensor:
    """Ids (M, L), (M,), (M, G) -> states (M, G·2·L, D): of every layer those of its keys and its values."""
    mappers: Mappers = encoder.mappers
    every = ids.repeat_interleave(mappers.layers, dim=0)  # (M·G, L)
    norm = next(each for name, each in encoder.named_modules() if name.endswith("final_layer_norm"))
    with torch.autocast(ids.device.type, enabled=False):
        rows, bypasses = mappers.vectors(timesteps, kept)
        with _rows_in_place(encoder.get_input_embeddings(), mappers, rows):
            # forward, not a call: the hook above would spell the ids again
            last = encoder.forward(input_ids=every, output_hidden_states=True).hidden_states[-1]
        turned = last  # (M·G, L, D), before the final norm
        for token_id, bypass in zip(mappers.token_ids, bypasses, strict=True):
            length = BYPASS * last.norm(dim=-1, keepdim=True)
            beside = last + length * F.normalize(bypass, dim=1)[:, None].to(last)
            turned = torch.where((every == token_id)[..., None], beside, turned)
        states = torch.cat([norm(last), norm(turned)], dim=1)  # (M·G, 2·L, D)
    return states.unflatten(0, (len(ids), mappers.layers)).flatten(1, 2)


def _encoded(encoder: nn.Module, unet: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
    """Pre-hook of the UNet: text states (B, L, D) -> (B, G·2·L, D), unless no caption waits."""
    given = dict(zip(("sample", "timestep", "encoder_hidden_states"), args, strict=False)) | kwargs
    states, mappers = given["encoder_hidden_states"], encoder.mappers
    training = torch.is_grad_enabled() and next(mappers.parameters()).requires_grad
    waits = [i for i, mark in enumerate(states[:, 0, 0].tolist()) if mark == MARK]
    if not waits:
        if training:  # every caption dropped: a gradient of 0, for a loss without any would stop the run
            nothing = 0 * sum(parameter.sum() for parameter in mappers.parameters())
            given["encoder_hidden_states"] = states + nothing.to(states)
        return (), given
    places = torch.tensor(waits, device=states.device)  # (M,)
    ids = read_ids(states[places])
    timesteps = torch.as_tensor(given["timestep"], device=ids.device).expand(len(states))[places]
    if training:
        kept = kept_in_training([ITEM_SEEDS.get()[i] for i in waits], mappers.layers).to(ids.device)
        encoded = encode_at(encoder, ids, timesteps, kept)
    else:  # one caption of many images, or of all frames, is encoded once
        asked, which = torch.cat([timesteps[:, None].long(), ids], 1).unique(dim=0, return_inverse=True)
        kept = torch.full((len(asked), mappers.layers), HIDDEN, device=ids.device)
        encoded = encode_at(encoder, asked[:, 1:], asked[:, 0], kept)[which]
    whole = states.repeat(1, 2 * mappers.layers, 1)
    given["encoder_hidden_states"] = whole.index_copy(0, places, encoded.to(states))
    return (), given


def _cut(
    layer: int, layers: int, length: int, attention: nn.Module, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict]:
    """Pre-hook of a cross-attention: of (B, G·2·L, D) the layer's own (B, 2·L, D)."""
    states = kwargs["encoder_hidden_states"]
    if states.shape[1] == 2 * layers * length:
        own = states[:, 2 * layer * length : 2 * (layer + 1) * length]
        kwargs = kwargs | {"encoder_hidden_states": own}
    return args, kwargs


def _half(half: int, length: int, projection: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
    """Hook of to_k and to_v: of 2·L states the first half is for keys, the second for values."""
    return output[:, half * length : (half + 1) * length] if output.shape[1] == 2 * length else output


def hook_unet(encoder: nn.Module, unet: nn.Module, length: int) -> None:
    """Lets the UNet encode captions that wait for it. length: L, the tokenizer's limit."""
    names, layers = cross_attention_layers(unet), encoder.mappers.layers
    assert len(names) == layers, f"{len(names)} layers in the UNet, mappers for {layers}"
    unet.register_forward_pre_hook(partial(_encoded, encoder), with_kwargs=True)
    for layer, name in enumerate(names):
        attention = unet.get_submodule(name)
        attention.register_forward_pre_hook(partial(_cut, layer, layers, length), with_kwargs=True)
        attention.to_k.register_forward_hook(partial(_half, 0, length))
        attention.to_v.register_forward_hook(partial(_half, 1, length))


def put_in(text_encoder: nn.Module, unet: nn.Module, mappers: Mappers, length: int) -> None:
    """The mappers as a part of the text encoder (`text_encoder.mappers`), and all hooks."""
    assert not hasattr(text_encoder, "mappers"), "mappers installed twice"
    text_encoder.mappers = mappers
    text_encoder.register_forward_hook(partial(_spelled, mappers), with_kwargs=True)
    hook_unet(text_encoder, unet, length)


def hook_copy(base: "BaseModel", unet: nn.Module) -> None:
    """Hooks for a UNet made from the base's weights; nothing where the base has no mappers."""
    if hasattr(base.text_encoder, "mappers"):
        hook_unet(base.text_encoder, unet, base.tokenizer.model_max_length)


def attach(base: "BaseModel") -> Parameters:
    """A mapper for each token, drawn by one seed; what it gives has the length of the token's first row."""
    rows = base.rows["rows"]  # (K, D)
    first = base.text_encoder.get_input_embeddings().table.num_embeddings
    layers = len(cross_attention_layers(base.unet))
    mappers = Mappers(rows, range(first, first + len(rows)), layers).to(base.device)
    put_in(base.text_encoder, base.unet, mappers, base.tokenizer.model_max_length)
    return dict(mappers.named_parameters())


def pack(base: "BaseModel", parameters: Parameters) -> Tensors:
    """The mappers' parameters and frequencies, `each.<k>.…` of token k, and the lengths of what they give."""
    return dict(base.text_encoder.mappers.state_dict())


def _empty(base: "BaseModel", count: int) -> Mappers:
    width = base.text_encoder.get_input_embeddings().weight.shape[1]
    return Mappers(torch.zeros(count, width), range(count), len(cross_attention_layers(base.unet)))


def merge(base: "BaseModel", tensors: Tensors, path: Path) -> dict[str, Tensors]:
    """No weight of the base changes (see `install`); only checks that layers and width fit."""
    count = sum(name.endswith(".frequencies") for name in tensors)
    expected = _empty(base, max(count, 1)).state_dict()
    check_names(tensors, expected, "mappers", path)
    for name, value in tensors.items():
        check_shape(name, value, expected[name], "mapper", path)
        if not value.isfinite().all():
            raise UserError(f"{path}: {name} is not finite")
    return {}


def install(base: "BaseModel", tensors: Tensors, token_ids: dict[str, int], path: Path) -> None:
    """Puts checked mappers into a plain base whose tokenizer has the tokens."""
    check_count(len(tensors["lengths"]), token_ids, path)
    mappers = _empty(base, len(token_ids))
    mappers.load_state_dict(tensors)
    mappers.token_ids = list(token_ids.values())
    encoder = base.text_encoder
    mappers.requires_grad_(False).to(encoder.device)
    put_in(encoder, base.unet, mappers, base.tokenizer.model_max_length)


LEARNER = Learner(
    "mapper",
    "a mapper of timesteps and layers",
    attach,
    pack,
    merge,
    "token_learning_rate",
    install=install,
    hook_copy=hook_copy,
    tokens_only=True,
    one_vector=True,
    one_encoder=True,
    timed=True,
    plain="a small network that gives the new word its meaning",
)

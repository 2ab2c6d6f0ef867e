"""The interface of a learner."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from utils.common.errors import UserError

if TYPE_CHECKING:
    from utils.bases.base import BaseModel

Parameters = dict[str, nn.Parameter]
Tensors = dict[str, Tensor]
WRONG_BASE = "load the base model it was trained on"
# "own": <learner>.safetensors; "official": the official K/V file; "tokens": a file for each modifier token.
LAYOUTS = ("own", "official", "tokens")


@dataclass(frozen=True)
class Learner:
    """One thing that can train.

    attach(base): makes its parameters trainable, float32, and returns them by name; everything else stays as
    it is. Called once, when the whole base is frozen and the modifier tokens are installed. pack(base,
    parameters): the tensors of its file in a concept's folder. merge(base, tensors, path): {component:
    {parameter name: new value}} of a plain base, float32; changes nothing. Raises UserError for tensors
    that do not fit; path: of the concept, for messages. title: shown to users; plain: the same for who does
    not know the terms. rate: the configuration's
    field with its learning rate. text: whether the text losses reach it. exact: whether its file gives its
    parameters back bit for bit, so that a checkpoint holds no copy. tokens_only: whether prompts without a
    modifier token stay as they are. layered: whether text states hold a copy for each layer. timed: whether
    a token means something else at every timestep, so that its prompts have no text states of their own.
    one_vector: whether a token has to be a single row (--num_vectors 1).
    keeps(base): bytes that it keeps besides its parameters, once attached. one_encoder: whether it knows
    bases with a single text encoder only. layout: of its file, see LAYOUTS.
    install(base, tensors, token ids by token, path): for a learner that more than changed weights put
    into effect; called after `merge` has checked the tensors, when the tokens are in place.
    hook_copy(base, unet): what `install` did to the base's UNet, for one made from its weights;
    nothing where the base has none of it.
    """

    name: str
    title: str
    attach: "Callable[[BaseModel], Parameters]"
    pack: "Callable[[BaseModel, Parameters], Tensors]"
    merge: "Callable[[BaseModel, Tensors, Path], dict[str, Tensors]]"
    rate: str = "learning_rate"
    text: bool = False
    exact: bool = False
    tokens_only: bool = False
    layered: bool = False
    timed: bool = False
    one_vector: bool = False
    keeps: "Callable[[BaseModel], int] | None" = None
    one_encoder: bool = False
    layout: str = "own"
    install: "Callable[[BaseModel, Tensors, dict[str, int], Path], None] | None" = None
    hook_copy: "Callable[[BaseModel, nn.Module], None] | None" = None
    plain: str = ""

    def __post_init__(self) -> None:
        assert self.layout in LAYOUTS, self.layout


def check_names(found: Iterable[str], expected: Iterable[str], owner: str, path: Path) -> None:
    """Raises UserError unless a concept's file holds just the weights that the owner has."""
    missing, unused = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or unused:
        raise UserError(
            f"{path} does not fit the {owner}: {len(missing)} weights missing {missing[:2]}, "
            f"{len(unused)} not in the {owner} {unused[:2]}; {WRONG_BASE}"
        )


def check_shape(name: str, found: Tensor, expected: Tensor, owner: str, path: Path) -> None:
    """Raises UserError when a weight of a concept has another shape than the owner's."""
    if found.shape != expected.shape:
        shapes = f"shape {tuple(found.shape)}, the {owner}'s is {tuple(expected.shape)}"
        raise UserError(f"{path}: {name} has {shapes}; {WRONG_BASE}")


def check_count(count: int, token_ids: dict[str, int], path: Path) -> None:
    """Raises UserError unless a concept's file was trained with as many tokens as the concept has."""
    if count != len(token_ids):
        raise UserError(f"{path} has rows of {count} tokens for {len(token_ids)} tokens; {WRONG_BASE}")


def train_whole(module: nn.Module) -> Parameters:
    """All parameters of a module, float32 and trainable, by name."""
    module.float().requires_grad_(True)
    return dict(module.named_parameters())

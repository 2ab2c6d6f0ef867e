"""Test-time embedding adjustment: a concept's text states are turned back towards its class; no training.

Bui et al. 2025, arXiv:2506.22685, by the formula of the authors' code: a learned token grows and turns in the
text space until it outweighs the other words. So at every position i of the encoded prompt, EOS and padding
too, with e_i of the prompt and t_i of the prompt in which the class stands for the concept,

    n_i = (1 − α) ‖e_i‖ + α ‖t_i‖        e_i' = n_i · slerp(e_i, t_i; ρ)

α is `norm` (published: 0.5), ρ is `rotation` (published: 0.2). The negative prompt's states stay. Where the
token's row is all that was learned (textual inversion), the same is done to the row, against the class
word's, before prompts are encoded.
Quirk, as published: "a <new1> dog" has a token more than "a dog", so that positions behind the token are
compared with the class prompt's next one.

Shapes: B prompts, L tokens, G layers (1, or those of layer rows), D text width.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.bases.base import Adjust, BaseModel
from utils.bases.families import as_base
from utils.sampling.settings import ADJUSTED_NORM, check_rotation
from utils.scores.similarity import with_class

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def turn(own: Tensor, target: Tensor, rotation: float, norm: float) -> Tensor:
    """Vectors (..., D) turned towards `target` by the share `rotation` of the angle, their lengths mixed by
    the share `norm`. Where the sine of the angle is below 1e-6, directions are mixed in a straight line."""
    a, b = F.normalize(own, dim=-1), F.normalize(target, dim=-1)
    angle = torch.arccos((a * b).sum(dim=-1, keepdim=True).clamp(-1, 1))
    sine = torch.sin(angle)
    straight = sine.abs() < 1e-6
    along = torch.sin((1 - rotation) * angle) * a + torch.sin(rotation * angle) * b
    direction = torch.where(straight, (1 - rotation) * a + rotation * b, along / sine.where(~straight, 1))
    lengths = (1 - norm) * own.norm(dim=-1, keepdim=True) + norm * target.norm(dim=-1, keepdim=True)
    return lengths * direction


def adjustment(
    pipeline: "BaseModel | DiffusionPipeline",
    classes: Mapping[str, str | None],
    rows_only: Collection[str],
    rotation: float,
    norm: float = ADJUSTED_NORM,
) -> Adjust | None:
    """What `sample` is to do with text states, for the concepts of a pipeline; None where nothing is left.

    classes: class word of each modifier token. rows_only: the tokens of which nothing but the row was
    learned; their rows are turned here, in the pipeline. Raises UserError as `check_rotation` does.
    """
    check_rotation(rotation, norm, classes)
    base = as_base(pipeline)
    for token in rows_only:
        adjust_row(base, token, classes[token], rotation, norm)
    others = {token: word for token, word in classes.items() if token not in rows_only}
    return partial(adjust, base, classes=others, rotation=rotation, norm=norm) if others else None


@torch.no_grad()
def adjust_row(base: BaseModel, token: str, word: str, rotation: float, norm: float) -> None:
    """Turns a token's row towards its class word's; of a class of several tokens, towards their mean."""
    for encoder in base.encoders:
        table, tokenizer = encoder.model.get_input_embeddings().weight, encoder.tokenizer
        own = tokenizer.convert_tokens_to_ids(token)
        ids = tokenizer(word, add_special_tokens=False).input_ids
        table[own] = turn(table[own].float(), table[ids].float().mean(dim=0), rotation, norm).to(table)


@torch.no_grad()
def adjust(
    pipeline: "BaseModel | DiffusionPipeline",
    prompts: Sequence[str],
    states: Tensor,
    classes: Mapping[str, str],
    rotation: float,
    norm: float = ADJUSTED_NORM,
) -> Tensor:
    """The states (B, G·L, D) with those of prompts that name a token of `classes` turned at every position.

    rotation: 0 keeps the directions, 1 takes the class prompt's; norm: the same for the lengths.
    """
    base, adjusted = as_base(pipeline), states.clone()
    for number, prompt in enumerate(prompts):
        if any(token in prompt for token in classes):
            target = base.text_states([with_class(prompt, classes)])[0].to(states.device)  # (G·L, D)
            adjusted[number] = turn(states[number].float(), target.float(), rotation, norm).to(states.dtype)
    return adjusted

"""The layouts of K/V files in use: the official and HF's one, Adobe's two.

Shapes: C channels of a cross-attention layer, D text width, r rank of a compressed layer.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.common.errors import UserError
from utils.concepts.embeddings import token_rows
from utils.concepts.weights import ConceptWeights


def parse_processors(content: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """Official and HF: `….attn2.processor.to_k_custom_diffusion.weight`; in .bin an empty dict per attn1."""
    weights = {}
    for key, value in content.items():
        match = re.fullmatch(r"(.+\.attn2)\.processor\.(to_[kvq]|to_out)_custom_diffusion\.(.+)", key)
        if match and isinstance(value, Tensor):
            weights[".".join(match.groups())] = value.detach()
        elif not (key.endswith(".attn1.processor") and value == {}):
            raise UserError(f"{path}: unexpected entry {key}")
    return weights


def parse_adobe(content: dict[str, Any], path: Path) -> ConceptWeights:
    """Adobe's delta.bin: {"unet": {parameter name: weight}, "modifier_token": {token: row}}.

    For SDXL it has "modifier_token_2" too, the rows of the second text encoder.
    """
    if unexpected := sorted(content.keys() - {"unet", "modifier_token", "modifier_token_2"}):
        # "text_encoder" is one: a whole fine-tuned text encoder, which no concept of this project has.
        raise UserError(f"{path}: unexpected entries {unexpected}; K/V and token rows can be loaded, no more")
    weights, deltas = _split_compressed(content["unet"], path)
    rows = token_rows(content.get("modifier_token", {}), path)
    if "modifier_token_2" in content:
        second = token_rows(content["modifier_token_2"], path)
        if rows.keys() != second.keys():
            raise UserError(f"{path} has tokens of one text encoder only; save it again with both")
        rows = {token: torch.cat([row, second[token]]) for token, row in rows.items()}
    return ConceptWeights(weights, deltas, rows)


def parse_compvis(content: dict[str, Any], path: Path) -> ConceptWeights:
    """Adobe's delta_epoch=*.ckpt: {"state_dict": {CompVis name: weight, "embed": (tokens, D) or flattened}}.

    Quirk: the tokens' names are not stored; as in Adobe's own converter they are <new1>, <new2>, ...
    """
    named = {key: value for key, value in content["state_dict"].items() if key != "embed"}
    weights, deltas = _split_compressed(
        {_diffusers_name(key, path): value for key, value in named.items()}, path
    )
    embed = content["state_dict"].get("embed")
    if embed is None:
        return ConceptWeights(weights, deltas)
    width = next(
        value for name, value in (weights | deltas).items() if name.endswith("attn2.to_k.weight")
    ).shape[1]
    rows = {f"<new{i}>": row for i, row in enumerate(embed.detach().reshape(-1, width), start=1)}  # (D,) each
    return ConceptWeights(weights, deltas, rows)


def _diffusers_name(key: str, path: Path) -> str:
    """A CompVis parameter's name in diffusers. A level of Stable Diffusion is three CompVis blocks."""
    pattern = r"model\.diffusion_model\.(?:(input|output)_blocks\.(\d+)|middle_block)\.1\.(.+\.attn2\..+)"
    match = re.fullmatch(pattern, key)
    if match is None:
        raise UserError(f"{path}: unexpected entry {key}")
    side, index, rest = match.groups()
    if side is None:
        return f"mid_block.attentions.0.{rest}"
    level, module = divmod(int(index) - (side == "input"), 3)  # input block 0 is the first convolution
    return f"{'down' if side == 'input' else 'up'}_blocks.{level}.attentions.{module}.{rest}"


def _split_compressed(entries: dict[str, Any], path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Full weights, and products of Adobe's compressed pairs {"u": (C, r), "v": (r, D)}."""
    weights, deltas = {}, {}
    for name, value in entries.items():
        if isinstance(value, Tensor):
            weights[name] = value.detach()
        elif isinstance(value, dict) and value.keys() == {"u", "v"}:
            deltas[name] = value["u"].float() @ value["v"].float()  # (C, D)
        else:
            raise UserError(f"{path}: unexpected entry {name}")
    return weights, deltas

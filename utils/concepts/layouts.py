"""The layouts of K/V files in use, the official and HF's one, Adobe's two; and what other weights files are.

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

# Files that are not concepts: the first row with a matching key names the file. Sources: the layouts that
# kohya's sd-scripts, LyCORIS, PEFT, diffusers and CompVis write.
KINDS: tuple[tuple[str, str], ...] = (
    (
        r".+\.(hada_w[12]_[ab]|lokr_w[12].*|oft_blocks|oft_diag|on_input)",
        "a LyCORIS network (LoHa, LoKr, OFT)",
    ),
    (r".+\.(dora_scale|lora_magnitude_vector.*)", "a DoRA"),
    (r"lora_(te|te1|te2)_.+", "a LoRA of the text encoder, in kohya's layout"),
    (r"lora_unet_.+", "a LoRA of layers other than the cross-attention's K and V, in kohya's layout"),
    (r".+[._]lora(_[AB]|\.(up|down|linear_layer.*))\b.*", "a LoRA in the layout of PEFT or diffusers"),
    (r"bundle_emb\..+", "a LoRA with embeddings bundled into it"),
    (r"(control_model|controlnet)[._].+", "a ControlNet"),
    (r"(first_stage_model|cond_stage_model|conditioner)\..+", "a whole Stable Diffusion checkpoint"),
    (r"model\.diffusion_model\.(time_embed|out)\..+", "a whole Stable Diffusion checkpoint"),
    (r"(loss|quant_conv|(en|de)coder\.(conv_in|mid|up|down)).*", "a VAE"),
    (r"text_model\..+", "a text encoder"),
    (r"(conv_in|time_embedding|(down|up)_blocks\.\d+\.resnets)\..+", "a whole UNet"),
)


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


def kind_of(content: dict[Any, Any]) -> str | None:
    """What the file is, None if no row of KINDS says. CompVis puts its keys under "state_dict"."""
    keys = [str(key) for key in content]
    if isinstance(nested := content.get("state_dict"), dict):
        keys += [str(key) for key in nested]
    for pattern, kind in KINDS:
        if any(re.fullmatch(pattern, key) for key in keys):
            return kind
    if content and all(isinstance(key, int) or key in ("step", "name") for key in content):
        return "an A1111 hypernetwork"
    return None


def refuse_foreign(content: dict[Any, Any], path: Path) -> None:
    """Raises UserError if the content is a file that KINDS knows."""
    if kind := kind_of(content):
        raise UserError(f"{path} is {kind}, not a concept; give a concept, an embedding or a LoRA of K and V")

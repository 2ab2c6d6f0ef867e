"""Save a trained concept, and merge one into a Stable Diffusion so that it provably takes effect.

Shapes: C channels of a cross-attention layer, D text width.
"""

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from utils.concepts.formats import ConceptWeights, read_concept
from utils.errors import UserError

WRONG_BASE = "load the base model it was trained on"


@dataclass(frozen=True)
class LoadedConcept:
    """What load_concept did: the parameters it replaced, the tokens it added and their ids."""

    path: Path
    token_ids: dict[str, int]
    merged: tuple[str, ...]
    base: str | None
    classes: tuple[str | None, ...]


def load_concept(
    pipeline: Any, path: str | Path, weight: float = 1.0, token: str | None = None
) -> LoadedConcept:
    """Merge a concept into pipeline.unet, .text_encoder and .tokenizer, or raise and leave them as they were.

    path: a concept's directory or file, in any layout of utils/concepts/formats.py.
    token: another name for the concept's only token, as read_concept takes it.
    weight: 1 gives the trained K/V exactly, 0 < weight < 1 the straight line from the base's to them.
    Works on UNet2DConditionModel and UNetMotionModel; call it before CPU offloading or compilation. The UNet
    remembers that it carries a concept, but a UNetMotionModel made from it does not.
    Raises UserError for missing or broken files, a token that exists, a second set of K/V, and weights that
    do not fit, are not all used, or change nothing.
    Why not unet.load_attn_procs: from diffusers 0.29 to 0.42 it reads the file and installs nothing.
    """
    path = Path(path)
    concept = read_concept(path, token)
    if not (concept.weights or concept.deltas or concept.rows):
        raise UserError(f"{path} holds no weights")
    merged = _merged_weights(pipeline.unet, concept, weight, path)
    _check_rows(pipeline, concept.rows, path)

    parameters = dict(pipeline.unet.named_parameters())
    with torch.no_grad():
        for name, value in merged.items():
            parameters[name].copy_(value)
    if merged:
        pipeline.unet.merged_concept = str(path)
    token_ids = _add_rows(pipeline, concept.rows)
    return LoadedConcept(path, token_ids, tuple(merged), concept.base, concept.classes)


def _merged_weights(unet: nn.Module, concept: ConceptWeights, weight: float, path: Path) -> dict[str, Tensor]:
    """The new value of every trained parameter, checked and in its dtype. The UNet stays as it is."""
    found = concept.weights.keys() | concept.deltas.keys()
    if not found:
        return {}
    if earlier := getattr(unet, "merged_concept", None):
        raise UserError(
            f"the UNet already carries the K/V of {earlier}, which {path} would overwrite; "
            "load it into a fresh pipeline, or train both concepts together"
        )
    _check_projections_in_use(unet)
    parameters = _matching_parameters(unet, found, path)
    merged = {}
    for name, parameter in sorted(parameters.items()):
        end = concept.weights.get(name, concept.deltas.get(name)).to(parameter.device).float()
        if end.shape != parameter.shape:
            shapes = f"shape {tuple(end.shape)}, the UNet's is {tuple(parameter.shape)}"
            raise UserError(f"{path}: {name} has {shapes}; {WRONG_BASE}")
        start = parameter.detach().float()
        if name in concept.deltas:
            end = start + end
        merged[name] = torch.lerp(start, end, weight).to(parameter.dtype)  # lerp at 1 is exactly `end`
        if not merged[name].isfinite().all():
            raise UserError(f"{path}: {name} is not finite in {parameter.dtype}")
    if all(torch.equal(parameters[name], value) for name, value in merged.items()):
        raise UserError(f"{path} has no effect: in the UNet's precision its K/V equal those already there")
    return merged


def _matching_parameters(unet: nn.Module, found: Set[str], path: Path) -> dict[str, nn.Parameter]:
    """The UNet's parameters of the names found: all attn2.to_k/to_v, or all of attn2, no less and no more."""
    # A motion module's attn2 attends to frames, not to text.
    cross = {k: v for k, v in unet.named_parameters() if ".attn2." in k and ".attentions." in k}
    kv = {name for name in cross if name.endswith((".to_k.weight", ".to_v.weight"))}
    trained_all = bool(found & (cross.keys() - kv))  # HF's and Adobe's --freeze_model crossattn
    expected = cross.keys() if trained_all else kv
    if found != expected:
        missing, unused = sorted(expected - found), sorted(found - expected)
        raise UserError(
            f"{path} does not fit the UNet: {len(missing)} weights missing {missing[:2]}, "
            f"{len(unused)} not in the UNet {unused[:2]}; {WRONG_BASE}"
        )
    return {name: cross[name] for name in found}


def _check_projections_in_use(unet: nn.Module) -> None:
    """Custom Diffusion processors and fused projections hold their own K/V, which would hide the merged."""
    for name, module in unet.named_modules():
        if not isinstance(module, Attention) or not name.endswith(".attn2"):
            continue
        if module.fused_projections or type(module.processor).__name__.startswith("CustomDiffusion"):
            raise UserError(
                f"{name} does not use its to_k/to_v; call unet.unfuse_qkv_projections() or "
                "unet.set_default_attn_processor() before loading a concept"
            )


def _check_rows(pipeline: Any, rows: dict[str, Tensor], path: Path) -> None:
    """Rows must be new to the tokenizer and fit the text encoder. Both stay as they are."""
    if not rows:
        return
    tokenizer, table = pipeline.tokenizer, pipeline.text_encoder.get_input_embeddings().weight
    if len(tokenizer) > len(table):
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, the text encoder {len(table)} rows")
    vocabulary = tokenizer.get_vocab()
    added = {token.lower() for token in tokenizer.get_added_vocab()}  # found in prompts whatever their case
    for token, row in rows.items():
        if token in vocabulary or token.lower() in added:
            raise UserError(
                f"{token} of {path} is in the tokenizer already; load it into a fresh pipeline, "
                "or train the concept under another --modifier_token"
            )
        if len(row) != table.shape[1]:
            widths = f"width {len(row)}, the text encoder's is {table.shape[1]}"
            raise UserError(f"{path}: {token} has {widths}; {WRONG_BASE}")
        if not row.to(table.dtype).isfinite().all():
            raise UserError(f"{path}: {token} is not finite in {table.dtype}")


def _add_rows(pipeline: Any, rows: dict[str, Tensor]) -> dict[str, int]:
    """Add the tokens and their rows, (D,) each; the ids under which prompts now find them."""
    if not rows:
        return {}
    tokenizer, text_encoder = pipeline.tokenizer, pipeline.text_encoder
    tokenizer.add_tokens(list(rows))
    if len(tokenizer) > text_encoder.get_input_embeddings().num_embeddings:
        # The library draws the new rows at random; every one of them is overwritten below.
        text_encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table = text_encoder.get_input_embeddings().weight
    token_ids = {token: tokenizer.convert_tokens_to_ids(token) for token in rows}
    for token, row in rows.items():
        input_ids = tokenizer.encode(token, add_special_tokens=False)
        assert input_ids == [token_ids[token]], f"prompts would read {token} as {input_ids}"
        with torch.no_grad():
            table[token_ids[token]] = row.to(table)
    return token_ids

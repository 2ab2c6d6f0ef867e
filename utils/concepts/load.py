"""Merge a trained concept into a Stable Diffusion so that it provably takes effect.

Shapes: C channels of a cross-attention layer, D text width.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from utils.bases.digest import base_digest
from utils.common.errors import UserError
from utils.concepts.formats import KV, read_concept
from utils.concepts.names import vector_names, written_out
from utils.concepts.weights import ConceptWeights
from utils.learners.learner import WRONG_BASE, check_shape
from utils.learners.registry import LEARNERS

Values = dict[tuple[str, str], Tensor]  # (component, parameter name) -> its new value


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
    weight: 1 gives the trained weights exactly, 0 < weight < 1 the straight line from the base's to them; a
    token's rows are always the trained ones, and a concept of nothing else takes no weight but 1.
    Works on UNet2DConditionModel and UNetMotionModel; call it before CPU offloading or compilation. The UNet
    remembers that it carries a concept, but a UNetMotionModel made from it does not.
    Raises UserError for missing or broken files, a token that exists, a second set of K/V, and weights that
    do not fit, are not all used, or change nothing.
    Why not unet.load_attn_procs: from diffusers 0.29 to 0.42 it reads the file and installs nothing.
    """
    path = Path(path)
    concept = read_concept(path, token)
    if not (concept.changes_weights or concept.rows):
        raise UserError(f"{path} holds no weights")
    _compare_bases(pipeline, concept, path)
    merged = _merged_weights(pipeline, concept, weight, path)
    if weight != 1 and not merged:
        raise UserError(f"{path} has token rows alone, which weight {weight:g} cannot scale; leave it out")
    _check_rows(pipeline, concept.rows, path)

    with torch.no_grad():
        for (component, name), value in merged.items():
            _own(pipeline, component, name, value).copy_(value)
    token_ids = _add_rows(pipeline, concept.rows)
    for learner, tensors in concept.parts.items():
        if LEARNERS[learner].install is not None:
            LEARNERS[learner].install(pipeline, tensors, token_ids, path)
    if concept.changes_weights:
        pipeline.unet.merged_concept = str(path)
    names = tuple(name for _, name in merged)
    return LoadedConcept(path, token_ids, names, concept.base, concept.classes)


def _own(pipeline: Any, component: str, name: str, value: Tensor) -> Tensor:
    """The parameter that takes the value; of a token table that has grown since, the first rows."""
    parameter = getattr(pipeline, component).get_parameter(name)
    return parameter[: len(value)] if name.endswith("token_embedding.weight") else parameter


def _compare_bases(pipeline: Any, concept: ConceptWeights, path: Path) -> None:
    """Warn when the concept was trained on other weights; a relative of the base may still suit it."""
    if concept.digest is None or hasattr(pipeline.unet, "merged_concept"):
        return
    here = base_digest(pipeline.unet, pipeline.text_encoder)
    if here is not None and here != concept.digest:
        warnings.warn(
            f"{path} was trained on another base model ({concept.base}, digest {concept.digest}; "
            f"here {here}): expect less likeness",
            stacklevel=3,
        )


def _merged_weights(pipeline: Any, concept: ConceptWeights, weight: float, path: Path) -> Values:
    """The new value of every trained parameter, checked and in its dtype. The pipeline stays as it is."""
    if not concept.changes_weights:
        return {}
    if earlier := getattr(pipeline.unet, "merged_concept", None):
        raise UserError(
            f"the UNet already carries the K/V of {earlier}, which {path} would overwrite; "
            "load it into a fresh pipeline, or train both concepts together"
        )
    merged: Values = {}
    for learner, tensors in _tensors_of(pipeline.unet, concept, path).items():
        if learner not in LEARNERS:
            raise UserError(f"{path} holds weights of '{learner}'; this version knows {', '.join(LEARNERS)}")
        if concept.rows and learner in concept.parts and not any(each.any() for each in tensors.values()):
            continue  # differences of a stage that has not begun: only the rows have learned
        for component, values in LEARNERS[learner].merge(pipeline, tensors, path).items():
            for name, end in sorted(values.items()):
                own = _own(pipeline, component, name, end).detach()
                value = torch.lerp(own.float(), end, weight).to(own.dtype)  # lerp at 1 is exactly `end`
                if not value.isfinite().all():
                    raise UserError(f"{path}: {name} is not finite in {own.dtype}")
                merged[component, name] = value
    if merged and all(torch.equal(_own(pipeline, *key, value), value) for key, value in merged.items()):
        raise UserError(
            f"{path} has no effect: in the model's precision its weights equal those already there"
        )
    return merged


def _tensors_of(unet: nn.Module, concept: ConceptWeights, path: Path) -> dict[str, dict[str, Tensor]]:
    """What each learner is to merge. K/V may be given as differences, which are added to the UNet's here."""
    tensors = dict(concept.parts)
    if concept.weights or concept.deltas:
        _check_projections_in_use(unet)
        parameters = dict(unet.named_parameters())
        kv = dict(concept.weights)
        for name, delta in concept.deltas.items():
            if name in parameters:
                check_shape(name, delta, parameters[name], "UNet", path)
                delta = parameters[name].detach().float() + delta.to(parameters[name].device).float()
            kv[name] = delta  # of an unknown name the learner complains
        tensors[KV] = kv
    return tensors


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
    tokens = {token.lower() for token in rows}
    for token, row in rows.items():
        if token in vocabulary or token.lower() in added:
            raise UserError(
                f"{token} of {path} is in the tokenizer already; load it into a fresh pipeline, "
                "or train the concept under another --modifier_token"
            )
        names = vector_names(token, len(torch.atleast_2d(row)))
        if taken := [name for name in names[1:] if name in vocabulary or name.lower() in added | tokens]:
            raise UserError(f"{path}: {taken[0]}, a vector of {token}, is another token; rename it: --token")
        if row.shape[-1] != table.shape[1]:
            widths = f"width {row.shape[-1]}, the text encoder's is {table.shape[1]}"
            raise UserError(f"{path}: {token} has {widths}; {WRONG_BASE}")
        if not row.to(table.dtype).isfinite().all():
            raise UserError(f"{path}: {token} is not finite in {table.dtype}")


def _add_rows(pipeline: Any, rows: dict[str, Tensor]) -> dict[str, int]:
    """Add the tokens and their rows, (D,) or (n, D) each; the ids under which prompts now find the first."""
    if not rows:
        return {}
    tokenizer, text_encoder = pipeline.tokenizer, pipeline.text_encoder
    vectors: dict[str, Tensor] = {}  # name -> (D,)
    for token, row in rows.items():
        each = torch.atleast_2d(row)
        vectors |= dict(zip(vector_names(token, len(each)), each, strict=True))
    tokenizer.add_tokens(list(vectors))
    if len(tokenizer) > text_encoder.get_input_embeddings().num_embeddings:
        # The library draws the new rows at random; every one of them is overwritten below.
        text_encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table = text_encoder.get_input_embeddings().weight
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in vectors}
    for name, row in vectors.items():
        with torch.no_grad():
            table[ids[name]] = row.to(table)
    for token in rows:
        input_ids = tokenizer.encode(written_out(tokenizer, token), add_special_tokens=False)
        own = [ids[name] for name in vector_names(token, len(torch.atleast_2d(rows[token])))]
        assert input_ids == own, f"prompts would read {token} as {input_ids}"
    return {token: ids[token] for token in rows}

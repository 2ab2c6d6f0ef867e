"""Merge a trained concept into a base model so that it provably takes effect.

Shapes: C channels of a cross-attention layer, D text width.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from utils.bases.base import BaseModel, TextEncoder
from utils.bases.families import as_base
from utils.common.errors import UserError
from utils.concepts.formats import KV, read_concept
from utils.concepts.names import vector_names, written_out
from utils.concepts.weights import ConceptWeights
from utils.learners.learner import WRONG_BASE, check_shape
from utils.learners.registry import LEARNERS

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Values = dict[tuple[str, str], Tensor]  # (component, parameter name) -> its new value


@dataclass(frozen=True)
class LoadedConcept:
    """What load_concept did: the parameters it replaced, the tokens it added and their ids.

    rows_only: the tokens, where they are all that was learned.
    """

    path: Path
    token_ids: dict[str, int]
    merged: tuple[str, ...]
    base: str | None
    classes: tuple[str | None, ...]
    rows_only: tuple[str, ...]


def load_concept(
    pipeline: "BaseModel | DiffusionPipeline", path: str | Path, weight: float = 1.0, token: str | None = None
) -> LoadedConcept:
    """Merge a concept into a pipeline's UNet, text encoders and tokenizers, or raise and leave them as they
    were.

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
    base, path = as_base(pipeline), Path(path)
    concept = read_concept(path, token)
    if not (concept.changes_weights or concept.rows):
        raise UserError(f"{path} holds no weights")
    _compare_bases(base, concept, path)
    merged = _merged_weights(base, concept, weight, path)
    if weight != 1 and not merged:
        raise UserError(f"{path} has token rows alone, which weight {weight:g} cannot scale; leave it out")
    _check_rows(base, concept.rows, path)

    with torch.no_grad():
        for (component, name), value in merged.items():
            _own(base, component, name, value).copy_(value)
    token_ids = _add_rows(base, concept.rows)
    for learner, tensors in concept.parts.items():
        if LEARNERS[learner].install is not None:
            LEARNERS[learner].install(base, tensors, token_ids, path)
    if concept.changes_weights:
        base.unet.merged_concept = str(path)
    names = tuple(name for _, name in merged)
    return LoadedConcept(path, token_ids, names, concept.base, concept.classes, tuple(concept.rows_only))


def _own(base: BaseModel, component: str, name: str, value: Tensor) -> Tensor:
    """The parameter that takes the value; of a token table that has grown since, the first rows."""
    parameter = base.modules[component].get_parameter(name)
    return parameter[: len(value)] if name.endswith("token_embedding.weight") else parameter


def _compare_bases(base: BaseModel, concept: ConceptWeights, path: Path) -> None:
    """Warn when the concept was trained on other weights; a relative of the base may still suit it."""
    if concept.digest is None or hasattr(base.unet, "merged_concept"):
        return
    here = base.fingerprint()
    if here is not None and here != concept.digest:
        warnings.warn(
            f"{path} was trained on another base model ({concept.base}, digest {concept.digest}; "
            f"here {here}): expect less likeness",
            stacklevel=3,
        )


def _merged_weights(base: BaseModel, concept: ConceptWeights, weight: float, path: Path) -> Values:
    """The new value of every trained parameter, checked and in its dtype. The pipeline stays as it is."""
    if not concept.changes_weights:
        return {}
    if earlier := getattr(base.unet, "merged_concept", None):
        raise UserError(
            f"the UNet already carries the K/V of {earlier}, which {path} would overwrite; "
            "load it into a fresh pipeline, or train both concepts together"
        )
    merged: Values = {}
    for learner, tensors in _tensors_of(base, concept, path).items():
        if learner not in LEARNERS:
            raise UserError(f"{path} holds weights of '{learner}'; this version knows {', '.join(LEARNERS)}")
        if concept.rows and learner in concept.parts and not any(each.any() for each in tensors.values()):
            continue  # differences of a stage that has not begun: only the rows have learned
        for component, values in LEARNERS[learner].merge(base, tensors, path).items():
            for name, end in sorted(values.items()):
                own = _own(base, component, name, end).detach()
                value = torch.lerp(own.float(), end, weight).to(own.dtype)  # lerp at 1 is exactly `end`
                if not value.isfinite().all():
                    raise UserError(f"{path}: {name} is not finite in {own.dtype}")
                merged[component, name] = value
    if merged and all(torch.equal(_own(base, *key, value), value) for key, value in merged.items()):
        raise UserError(
            f"{path} has no effect: in the model's precision its weights equal those already there"
        )
    return merged


def _tensors_of(base: BaseModel, concept: ConceptWeights, path: Path) -> dict[str, dict[str, Tensor]]:
    """What each learner is to merge. K/V may be given as differences, which are added to the UNet's here."""
    tensors = dict(concept.parts)
    if concept.weights or concept.deltas:
        _check_projections_in_use(base)
        parameters = dict(base.unet.named_parameters())
        kv = dict(concept.weights)
        for name, delta in concept.deltas.items():
            if name in parameters:
                check_shape(name, delta, parameters[name], "UNet", path)
                delta = parameters[name].detach().float() + delta.to(parameters[name].device).float()
            kv[name] = delta  # of an unknown name the learner complains
        tensors[KV] = kv
    return tensors


def _check_projections_in_use(base: BaseModel) -> None:
    """Custom Diffusion processors and fused projections hold their own K/V, which would hide the merged."""
    for name, module in base.unet.named_modules():
        if not isinstance(module, Attention) or not name.endswith(".attn2"):
            continue
        if module.fused_projections or type(module.processor).__name__.startswith("CustomDiffusion"):
            raise UserError(
                f"{name} does not use its to_k/to_v; call unet.unfuse_qkv_projections() or "
                "unet.set_default_attn_processor() before loading a concept"
            )


def _check_rows(base: BaseModel, rows: dict[str, Tensor], path: Path) -> None:
    """Rows must be new to the tokenizers and fit the text encoders. All stay as they are."""
    if not rows:
        return
    width, encoders = sum(encoder.width for encoder in base.encoders), base.encoders
    for token, row in rows.items():
        if row.shape[-1] != width:
            own = " + ".join(str(encoder.width) for encoder in encoders)
            theirs = "encoder's is" if len(encoders) == 1 else "encoders' are"
            raise UserError(
                f"{path}: {token} has width {row.shape[-1]}, the text {theirs} {own}; {WRONG_BASE}"
            )
    for encoder, parts in _rows_by_encoder(base, rows):
        _check_rows_of(encoder, parts, path)


def _rows_by_encoder(
    base: BaseModel, rows: dict[str, Tensor]
) -> Iterator[tuple[TextEncoder, dict[str, Tensor]]]:
    """Each text encoder with its part, (D,) or (n, D), of the rows, which stand side by side in a concept."""
    widths = [encoder.width for encoder in base.encoders]
    split = {token: row.split(widths, dim=-1) for token, row in rows.items()}
    for number, encoder in enumerate(base.encoders):
        yield encoder, {token: parts[number] for token, parts in split.items()}


def _check_rows_of(encoder: TextEncoder, rows: dict[str, Tensor], path: Path) -> None:
    tokenizer, table = encoder.tokenizer, encoder.model.get_input_embeddings().weight
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
        if not row.to(table.dtype).isfinite().all():
            raise UserError(f"{path}: {token} is not finite in {table.dtype}")


def _add_rows(base: BaseModel, rows: dict[str, Tensor]) -> dict[str, int]:
    """Add the tokens and their rows, (D,) or (n, D) each; the ids under which prompts now find the first, of
    the first text encoder."""
    if not rows:
        return {}
    ids = [_add_rows_to(encoder, parts) for encoder, parts in _rows_by_encoder(base, rows)]
    return ids[0]


def _add_rows_to(encoder: TextEncoder, rows: dict[str, Tensor]) -> dict[str, int]:
    tokenizer, model = encoder.tokenizer, encoder.model
    vectors: dict[str, Tensor] = {}  # name -> (D,)
    for token, row in rows.items():
        each = torch.atleast_2d(row)
        vectors |= dict(zip(vector_names(token, len(each)), each, strict=True))
    tokenizer.add_tokens(list(vectors))
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        # The library draws the new rows at random; every one of them is overwritten below.
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table = model.get_input_embeddings().weight
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in vectors}
    for name, row in vectors.items():
        with torch.no_grad():
            table[ids[name]] = row.to(table)
    for token in rows:
        input_ids = tokenizer.encode(written_out(tokenizer, token), add_special_tokens=False)
        own = [ids[name] for name in vector_names(token, len(torch.atleast_2d(rows[token])))]
        assert input_ids == own, f"prompts would read {token} as {input_ids}"
    return {token: ids[token] for token in rows}

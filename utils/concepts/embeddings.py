"""Token rows in the files of other tools: kohya, A1111, diffusers; and what a concept's token is called.

Shapes: n vectors of a token, D text width.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from utils.common.errors import UserError
from utils.concepts.names import check_token

if TYPE_CHECKING:
    from utils.concepts.weights import ConceptWeights

KOHYA_KEY = "emb_params"
SDXL_KEYS = ("clip_l", "clip_g")  # in the order in which the rows stand side by side
A1111_KEY = "string_to_param"
DIFFUSERS_FILES = ("learned_embeds.safetensors", "learned_embeds.bin")
IMAGES = (".png", ".webp", ".jpg", ".jpeg", ".jxl", ".avif")
_XTI_KEY = re.compile(r"(IN|OUT)\d\d|MID")


def embedding_of(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """{token: vectors} where another tool keeps an embedding without its token; other content as it is.

    kohya: {"emb_params": (n, D)}. A1111: {"string_to_param": {"*": (n, D)}, "name": …, …}. Both call a token
    by its file's name, so here it is <stem>. diffusers: {token: (n, D)} or (D,) needs no change.
    sd-scripts for SDXL: {"clip_l": (n, D₁), "clip_g": (n, D₂)}.
    Raises UserError for one half of an embedding for SDXL and for one of several layers.
    """
    if content.keys() & set(SDXL_KEYS):
        return {f"<{path.stem}>": _both_halves(content, path)}
    if content and all(_XTI_KEY.fullmatch(str(key)) for key in content):
        raise UserError(f"{path} is kohya's embedding with a row per layer (XTI); give one with a single row")
    token = f"<{path.stem}>"
    if content.keys() == {KOHYA_KEY}:
        return {token: content[KOHYA_KEY]}
    if A1111_KEY not in content:
        return content
    vectors = content[A1111_KEY]
    if not isinstance(vectors, dict) or len(vectors) != 1:
        raise UserError(f"{path}: {A1111_KEY} is not one embedding; save it again with a current A1111")
    return {token: next(iter(vectors.values()))}


def widths_in(content: dict[str, Any]) -> tuple[int, ...]:
    """The widths of the parts of a row of an embedding for SDXL; () for any other."""
    return tuple(content[key].shape[-1] for key in SDXL_KEYS) if content.keys() == set(SDXL_KEYS) else ()


def _both_halves(content: dict[str, Any], path: Path) -> Tensor:
    """(n, D₁ + D₂) of {"clip_l": (n, D₁), "clip_g": (n, D₂)}, the rows of SDXL's text encoders."""
    if content.keys() != set(SDXL_KEYS):
        found = ", ".join(sorted(map(str, content)))
        raise UserError(
            f"{path} has {found}; an embedding for SDXL has {' and '.join(SDXL_KEYS)}: give one of both"
        )
    halves = [content[key] for key in SDXL_KEYS]
    if not all(isinstance(half, Tensor) and half.ndim == 2 for half in halves) or len(halves[0]) != len(
        halves[1]
    ):
        raise UserError(f"{path}: {' and '.join(SDXL_KEYS)} are not as many rows; save it again")
    return torch.cat(halves, dim=1)


def token_rows(content: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """{token: (D,)} from {token: (D,) or (1, D)}; {token: (n, D)} where a token has n vectors."""
    for token, row in content.items():
        if not isinstance(row, Tensor):
            raise UserError(f"{path}: {token} is not one token's row: it is a {type(row).__name__}")
        if row.ndim not in (1, 2):
            shape = tuple(row.shape)
            raise UserError(f"{path}: {token} is not one token's rows: expected (D,) or (n, D), got {shape}")
    return {
        token: row.detach().squeeze(0) if row.ndim == 2 else row.detach() for token, row in content.items()
    }


def check_one_vector(concepts: "Iterable[ConceptWeights]", what: str) -> None:
    """Raises UserError, beginning with `what`, for a concept with a token of several vectors."""
    for concept in concepts:
        for token, row in concept.rows.items():
            if row.ndim == 2:
                raise UserError(f"{what} knows tokens of one vector, {token} has {len(row)}")


def named(concept: "ConceptWeights", token: str | None, path: Path) -> "ConceptWeights":
    """The concept with its only token called `token`, or as it is for None.

    Raises UserError for a concept of several tokens or none, and for a token that `check_token` refuses.
    """
    if token is not None:
        if len(concept.rows) != 1:
            known = ", ".join(concept.rows) or "none"
            raise UserError(f"--token {token} names one token; those of {path} are: {known}")
        concept = replace(concept, rows={token: next(iter(concept.rows.values()))})
    for name in concept.rows:
        check_token(f"{path}: token", name, "name it with --token, e.g. <dog1>")
    return concept


def refuse_image(path: Path) -> None:
    """A1111 can hide an embedding in an image's pixels or text."""
    if path.suffix.lower() in IMAGES:
        raise UserError(f"{path} is an image; give the embedding's .pt or .safetensors file")

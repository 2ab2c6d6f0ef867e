"""Save a trained concept in the official layout.

Shapes: C channels of a cross-attention layer, D text width.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.common.files import write_json
from utils.common.folders import replace_folder
from utils.common.tensor_files import write_pickle, write_tensors
from utils.concepts.formats import KV, MANIFEST, SUFFIXES, WEIGHTS_STEM
from utils.concepts.names import file_stems
from utils.learners.names import NAMES


def save_concept(
    output_dir: str | Path,
    kv: dict[str, Tensor],
    rows: dict[str, Tensor],
    safe_serialization: bool = True,
    base: str | None = None,
    classes: Sequence[str | None] = (),
    parts: Mapping[str, dict[str, Tensor]] | None = None,
    widths: Sequence[int] = (),
    **facts: str | None,
) -> None:
    """Write a concept in the official layout, and concept.json. Old files stay whole until the new ones are.

    kv: parameter name -> (C, D), the UNet's attn2.to_k/to_v, or all of attn2; empty for textual inversion.
    rows: modifier token -> (D,). Each is cloned: saved as a view, .bin would hold the whole table.
    safe_serialization: .safetensors; otherwise .bin, with the empty attn1 entries diffusers' loader wants.
    parts: learner -> the tensors of its own file, `<learner>.safetensors`.
    widths: of the parts of a row, where there are several text encoders.
    facts: method, subject, base_digest, as concept.json records them.
    """
    suffix = ".safetensors" if safe_serialization else ".bin"
    parts = parts or {}
    stems = file_stems(rows)
    contents: dict[str, dict[str, Any]] = {
        stem: {token: row} for stem, (token, row) in zip(stems, rows.items(), strict=True)
    }
    if kv:
        contents[WEIGHTS_STEM] = {_processor_key(name): value for name, value in kv.items()}
    contents |= parts
    manifest = {
        "format": 3,
        "base": base,
        "modifier_tokens": list(rows),
        "token_files": stems,
        "classes": list(classes),
        "files": ({KV: WEIGHTS_STEM} if kv else {}) | {learner: learner for learner in parts},
        **({"row_widths": list(widths)} if len(widths) > 1 else {}),
        **facts,
    }

    def fill(staging: Path) -> None:
        for stem, tensors in contents.items():
            _write(tensors, staging / (stem + suffix))
        write_json(staging / MANIFEST, manifest)

    # An earlier save in the other format, of another method, or by a version that called a token's file by
    # the token itself, would be a second truth.
    stale = [stem + other for stem in {*contents, *rows, WEIGHTS_STEM, *NAMES} for other in SUFFIXES]
    replace_folder(Path(output_dir), fill, stale)


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    tensors = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    if path.suffix == ".safetensors":
        write_tensors(path, tensors)
    else:
        write_pickle(path, tensors | _empty_attn1(tensors))


def _processor_key(name: str) -> str:
    """The official file's key for a UNet parameter: ….attn2.processor.to_k_custom_diffusion.weight.

    Of the output projection HF writes ….attn2.processor.to_out_custom_diffusion.0.weight and ….0.bias.
    """
    attention, trained = r"((?:down_blocks|mid_block|up_blocks)\..+\.attn2)", r"(to_[kvq]|to_out)\.(.+)"
    match = re.fullmatch(rf"{attention}\.{trained}", name)
    if match is None:
        raise ValueError(f"{name} is not the name of a UNet's attn2.to_k, to_v, to_q or to_out weight")
    return f"{match[1]}.processor.{match[2]}_custom_diffusion.{match[3]}"


def _empty_attn1(keys: dict[str, Tensor]) -> dict[str, dict]:
    processors = {key.partition(".to_")[0] for key in keys if ".attn2.processor." in key}
    return {name.replace(".attn2.", ".attn1."): {} for name in sorted(processors)}

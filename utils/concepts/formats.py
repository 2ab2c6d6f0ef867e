"""Read a trained concept from any layout in use: the official one, HF's, Adobe's two, LoRAs, embeddings."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from utils.bases.pretrained import readable
from utils.common.errors import UserError, short
from utils.common.folders import read_folder
from utils.common.limits import check_text
from utils.common.tensor_files import read_dictionary
from utils.concepts.embeddings import (
    DIFFUSERS_FILES,
    embedding_of,
    named,
    refuse_image,
    token_rows,
    widths_in,
)
from utils.concepts.layouts import parse_adobe, parse_compvis, parse_processors, refuse_foreign
from utils.concepts.lora import deltas_of, files_beside, is_kv_lora, lora_in, read_note
from utils.concepts.weights import ConceptWeights

WEIGHTS_STEM = "pytorch_custom_diffusion_weights"
ADOBE_FILE = "delta.bin"
MANIFEST = "concept.json"
KV = "cross_attention_kv"  # the learner whose file has the official layout
SUFFIXES = (".safetensors", ".bin")


def read_concept(path: Path, token: str | None = None) -> ConceptWeights:
    """The concept in a directory or a file. The official K/V file brings the token files next to it.

    token: what to call the concept's only token. Default: the name in the file, else <file's name>.
    Raises UserError if files are missing or ambiguous, or if their content is not a concept's.
    """
    refuse_image(path)
    with readable("concept", path):
        concept = named(_read(path), token, path)
        _check_finite(concept, path)
    return concept


def _check_finite(concept: ConceptWeights, path: Path) -> None:
    """Raises UserError for anything but a tensor of finite numbers, before a base model loads for it."""
    for tensors in (concept.weights, concept.deltas, concept.rows, *concept.parts.values()):
        for name, value in tensors.items():
            if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
                raise UserError(
                    f"{path}: {short(name)} is not a tensor of numbers: train or download it again"
                )
            if not value.isfinite().all():
                raise UserError(f"{path}: {short(name)} is not finite; train or download it again")


def _read(path: Path) -> ConceptWeights:
    if path.is_dir():
        return _read_directory(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a concept's directory or weights file")
    if path.stem == WEIGHTS_STEM:
        return _read_directory(path.parent, weights_file=path)
    return _parse(read_dictionary(path), path)


def _read_directory(folder: Path, weights_file: Path | None = None) -> ConceptWeights:
    return read_folder(folder, lambda files: _read_files(folder, files, weights_file))


def _read_files(folder: Path, found: dict[str, Path], weights_file: Path | None) -> ConceptWeights:
    """found: name -> path of the folder's files as they count now (utils/common/folders.py)."""
    weights_file = weights_file or _weights_file(folder, found)
    if weights_file and weights_file.name == ADOBE_FILE:
        return _parse(read_dictionary(weights_file), weights_file)
    manifest = read_manifest(found[MANIFEST]) if MANIFEST in found else None
    if weights_file is None and manifest is None and (other := _other_tool_file(folder)):
        return _read(other)
    if weights_file is None and (manifest is None or KV in manifest["files"]):
        wanted = f"{WEIGHTS_STEM}(.safetensors|.bin)"
        raise UserError(f"no {wanted} in {folder}; give a concept's directory, or one token file")
    weights = _parse(read_dictionary(weights_file), weights_file).weights if weights_file else {}
    if weights_file and not weights:
        raise UserError(f"{weights_file} holds no K/V; train or download the concept again")
    if manifest is None:  # official and HF: every other weights file next to the K/V is a token's
        files = [f for f in found.values() if f.suffix in SUFFIXES and f.stem != WEIGHTS_STEM]
        return ConceptWeights(weights, rows=_read_token_files(files))
    tokens = manifest["modifier_tokens"]
    rows = _read_token_files([_one_file(folder, found, stem) for stem in manifest["token_files"]])
    if list(rows) != tokens:
        raise UserError(f"{folder}: {MANIFEST} names {tokens}, the files hold {list(rows)}")
    own = {learner: stem for learner, stem in manifest["files"].items() if learner != KV}
    return ConceptWeights(
        weights,
        rows=rows,
        base=manifest["base"],
        classes=tuple(manifest["classes"]),
        parts={learner: read_dictionary(_one_file(folder, found, stem)) for learner, stem in own.items()},
        method=manifest.get("method"),
        digest=manifest.get("base_digest"),
        subject=manifest.get("subject", "{token} {cls}"),
        widths=tuple(manifest.get("row_widths") or ()),
    )


def _other_tool_file(folder: Path) -> Path | None:
    """A LoRA of scripts.export, or diffusers' textual inversion."""
    embeddings = [folder / name for name in DIFFUSERS_FILES if (folder / name).is_file()]
    return lora_in(folder) or next(iter(embeddings), None)


def _weights_file(folder: Path, found: dict[str, Path]) -> Path | None:
    own = [found[name] for suffix in SUFFIXES if (name := f"{WEIGHTS_STEM}{suffix}") in found]
    if len(own) > 1:
        raise UserError(f"{folder} holds {own[0].name} and {own[1].name}; give the path of one of them")
    return own[0] if own else found.get(ADOBE_FILE)


def _read_token_files(files: list[Path]) -> dict[str, Tensor]:
    rows: dict[str, Tensor] = {}
    for file in files:
        for token, row in token_rows(embedding_of(read_dictionary(file), file), file).items():
            if token in rows:
                raise UserError(f"{file.parent} holds {token} twice; remove one of its files")
            rows[token] = row
    return rows


def read_manifest(path: Path) -> dict[str, Any]:
    """concept.json of format 3, or of an earlier one as if it were. Raises UserError for anything else."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not valid JSON ({short(error, 200)}); train or download the concept again"
        ) from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if type(found) is not int or found not in (1, 2, 3):
        raise UserError(f"{path} has format {short(found)}; this version reads formats 1, 2 and 3")
    if found == 1:
        manifest["files"] = {KV: WEIGHTS_STEM} if manifest.get("kv") else {}
    if found < 3:  # a token's file was called by the token
        manifest["token_files"] = manifest.get("modifier_tokens")
    words = ("modifier_tokens", "classes", "token_files")
    lists = all(isinstance(manifest.get(key), list) for key in words)
    if not lists or not isinstance(manifest["files"], dict) or "base" not in manifest:
        raise UserError(f"{path} lacks modifier_tokens, classes, files or base; train or download it again")
    tokens, stems = manifest["modifier_tokens"], manifest["token_files"]
    if not all(isinstance(name, str) for name in [*tokens, *stems, *manifest["files"].values()]):
        raise UserError(f"{path} has a token or a file that is not a name; train or download it again")
    if len(stems) != len(tokens):
        raise UserError(f"{path} has not one file for each token; train or download it again")
    widths = manifest.get("row_widths") or []
    if not isinstance(widths, list) or not all(type(width) is int and width > 0 for width in widths):
        raise UserError(f"{path} has row_widths that are not valid; train or download it again")
    _check_words(manifest, path)
    return manifest


def _check_words(manifest: dict[str, Any], path: Path) -> None:
    """Raises UserError for texts that are none, or of several lines: they stand in prompts and messages."""
    facts = [manifest.get(name) for name in ("base", "method", "base_digest", "subject")]
    words = [each for each in [*facts, *manifest["classes"]] if each is not None]
    for word in [*words, *manifest["modifier_tokens"]]:
        if not isinstance(word, str):
            raise UserError(
                f"{path} has {short(repr(word))} where a text belongs; train or download it again"
            )
        check_text(str(path), word)
    if len(manifest["classes"]) not in (0, len(manifest["modifier_tokens"])):
        raise UserError(f"{path} has not one class for each token; train or download it again")
    left = manifest.get("subject", "").replace("{token}", "").replace("{cls}", "")
    if "{" in left or "}" in left:
        raise UserError(f"{path} has the subject {short(left)}; {{token}} and {{cls}} may stand there")


def _one_file(folder: Path, found: dict[str, Path], stem: str) -> Path:
    """The weights file of a name, in whichever format it was saved."""
    named = [found[name] for suffix in SUFFIXES if (name := f"{stem}{suffix}") in found]
    if len(named) != 1:
        raise UserError(f"{folder} needs one file {stem}(.safetensors|.bin) and holds {len(named)}")
    return named[0]


def _parse(content: dict[str, Any], path: Path) -> ConceptWeights:
    """Tell the layouts apart by their keys."""
    if "unet" in content:
        return parse_adobe(content, path)
    if "state_dict" in content:
        refuse_foreign(content, path)
        return parse_compvis(content, path)
    if any("_custom_diffusion." in key for key in content):
        return ConceptWeights(parse_processors(content, path))
    if is_kv_lora(content):
        return _parse_lora(content, path)
    refuse_foreign(content, path)
    return ConceptWeights(rows=token_rows(embedding_of(content, path), path), widths=widths_in(content))


def _parse_lora(content: dict[str, Any], path: Path) -> ConceptWeights:
    """kohya's layout, and what scripts.export noted: the tokens' files next to it, classes and base."""
    noted = read_note(path)
    rows = _read_token_files(files_beside(path))
    classes = tuple(noted.get("classes", ())) if rows else ()
    return ConceptWeights(deltas=deltas_of(content, path), rows=rows, base=noted.get("base"), classes=classes)

"""Write a concept in the formats of other tools; what a format cannot hold is refused with the reason.

Shapes: C channels of a cross-attention layer, D text width, r rank, n words of captions.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from utils.bases.devices import DTYPES, cast_frozen, without_progress_bars
from utils.bases.families import family_of, open_base, open_part
from utils.common.errors import UserError, short
from utils.common.files import give_umask_mode
from utils.common.tensor_files import system_errors, write_pickle, write_tensors
from utils.concepts.captions import regularisation_captions
from utils.concepts.embeddings import KOHYA_KEY, SDXL_KEYS, check_one_vector
from utils.concepts.formats import WEIGHTS_STEM
from utils.concepts.load import WRONG_BASE, load_concept
from utils.concepts.lora import (
    METADATA_KEY,
    deltas_of,
    diff_tensors,
    factorise,
    is_kv_name,
    layer_name,
    lora_tensors,
    rank_for,
)
from utils.concepts.lora_error import LORA_ERROR
from utils.concepts.merge import features, install_rows
from utils.concepts.names import is_device, vector_names, written_out
from utils.concepts.weights import ConceptWeights
from utils.learners.registry import LEARNERS


@dataclass(frozen=True)
class LoraReport:
    """What a LoRA file holds. errors: parameter -> ‖(Δ − Δ̂)Hᵀ‖ / ‖ΔHᵀ‖ of the stored numbers, H the captions'
    text states; error: of all layers together.
    """

    file: Path
    rank: int
    errors: dict[str, float]
    error: float


def aliases_of(concept: ConceptWeights, path: Path, given: str | None) -> dict[str, str]:
    """token -> the name of its embedding file, which is what prompts say in ComfyUI and A1111.

    given: names joined by +, one per token. Default: the class or the concept's folder, and a number.
    """
    tokens = list(concept.rows)
    if given is None:
        classes = [*concept.classes, *[None] * len(tokens)][: len(tokens)]
        stems = [re.sub(r"[^\w-]+", "_", name or path.stem)[:50] for name in classes]
        names = [f"{stem}{stems[: i + 1].count(stem)}" for i, stem in enumerate(stems)]
    else:
        names = given.split("+")
    if len(names) != len(tokens):
        raise UserError(
            f"--alias {short(given)} has {len(names)} names for {len(tokens)} tokens; join one each by +"
        )
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][\w-]{,99}", name) or is_device(name):
            raise UserError(
                f"--alias {short(name)} does not work in every tool: use at most 100 letters, digits, _ and "
                "-, e.g. dog1"
            )
    if len({name.lower() for name in names}) < len(names):
        raise UserError(f"--alias {'+'.join(names)} repeats a name; give each token its own")
    return dict(zip(tokens, names, strict=True))


def parts_beyond(concept: ConceptWeights) -> list[str]:
    """What was trained besides K, V and token rows: learners, and what this file does not know."""
    held = {each.name: getattr(concept, each.name) for each in fields(concept)}
    known = ("weights", "deltas", "rows", "parts")
    later = [n for n, value in held.items() if isinstance(value, Mapping) and value and n not in known]
    return sorted([*concept.parts, *later])


def check_exportable(concept: ConceptWeights, path: Path, layout: str) -> None:
    """Raises UserError for a concept that the layout cannot hold."""
    others = parts_beyond(concept)
    if hooked := [each for name, each in LEARNERS.items() if name in others and each.install is not None]:
        raise UserError(
            f"{path} trained {hooked[0].title}, which no format of this command can hold: "
            "load_concept and inference.py read the concept itself"
        )
    if others and layout != "diffusers":
        raise UserError(f"{path} trained {others[0]}, which {layout} cannot hold; use --format diffusers")
    kv = concept.weights.keys() | concept.deltas.keys()
    if layout in ("lora", "diff", "official") and not kv:
        raise UserError(f"{path} has no K/V, only token rows; use --format embedding")
    if not (others or kv or concept.rows):
        raise UserError(f"{path} holds no weights")
    if layout == "official":
        check_one_vector([concept], "--format official")
    if layout == "official" and len(concept.widths) > 1:
        raise UserError(
            f"{path} has rows of {len(concept.widths)} text encoders, and official holds those of one; "
            "use --format lora"
        )
    if layout == "embedding" and kv:
        raise UserError(
            f"{path} has K/V, which an embedding would leave out; use --format lora, which writes both"
        )
    if layout in ("lora", "diff", "official") and (others := sorted(n for n in kv if not is_kv_name(n))):
        raise UserError(
            f"{path} trained {others[0]}, and {layout} holds K and V only; use --format diffusers"
        )


def widths_of(concept: ConceptWeights, base: str | None) -> tuple[int, ...]:
    """The widths of the parts of the concept's rows, one for each text encoder, as it or its base says."""
    if concept.widths or base is None or not concept.rows:
        return concept.widths
    return tuple(encoder.width for encoder in family_of(base).outline(base).encoders)


def base_kv(base: str, names: set[str], path: Path) -> dict[str, Tensor]:
    """The base's own weights of these names, (C, D) float32.

    Raises UserError if it has not all of them, and as `open_part` does.
    """
    unet = open_part("unet", base)
    own = {name: weight.detach() for name, weight in unet.named_parameters() if name in names}
    if missing := sorted(names - own.keys()):
        raise UserError(f"{path} has {missing[0]}, which {base}'s UNet lacks; {WRONG_BASE}")
    return own


def differences(concept: ConceptWeights, start: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """parameter -> W − W⁰, (C, D) float64. Raises UserError for shapes that differ and for no difference."""
    deltas = {name: delta.double() for name, delta in concept.deltas.items()}
    for name, weight in sorted((concept.weights | concept.deltas).items()):
        if weight.shape != start[name].shape:
            shapes = f"shape {tuple(weight.shape)}, the base's is {tuple(start[name].shape)}"
            raise UserError(f"{path}: {name} has {shapes}; {WRONG_BASE}")
        if name in concept.weights:
            deltas[name] = weight.double() - start[name].double()
    if not any(delta.any() for delta in deltas.values()):
        raise UserError(f"{path} has no effect: its K/V equal the base's")
    return deltas


def caption_states(base: str, concept: ConceptWeights) -> Tensor:
    """H (n, D) float64: text states of captions of the concept ("a photo of a red <new1> dog at sunset")."""
    model = open_base(base, "cpu", "fp32").freeze()
    vectors = {token: torch.atleast_2d(row) for token, row in concept.rows.items()}
    single = [zip(vector_names(token, len(each)), each, strict=True) for token, each in vectors.items()]
    install_rows(model, dict(chain(*single)))
    words = [*concept.classes, *[None] * len(concept.rows)]
    subjects = [f"{t} {word}" if word else t for t, word in zip(concept.rows, words, strict=False)]
    captions = [
        written_out(model.tokenizer, caption) for caption in regularisation_captions(subjects=subjects)
    ]
    return features(model, captions)


def write_lora(
    file: Path,
    deltas: dict[str, Tensor],
    states: Tensor,
    note: dict,
    rank: int | None,
    error: float | None,
    dtype: str,
) -> LoraReport:
    """The low-rank matrices whose outputs on `states`, of `caption_states`, differ least; kohya's layout.

    error: the largest relative error of all layers' outputs, 0: exact to rounding. Default, without a rank:
    LORA_ERROR.
    """
    root = torch.linalg.qr(states, mode="r").R  # (D, D)
    factors = factorise(deltas, root)
    full = max(len(layer.s) for layer in factors.values())
    if rank is not None and rank > full:
        raise UserError(f"--rank {rank}: rank {full} is exact already; give at most {full}")
    rank = rank or rank_for(factors, LORA_ERROR if error is None else error)
    return _write(file, lora_tensors(factors, rank, getattr(torch, DTYPES[dtype])), deltas, root, note, rank)


def write_diff(file: Path, deltas: dict[str, Tensor], states: Tensor, note: dict, dtype: str) -> LoraReport:
    """The differences themselves, for ComfyUI and A1111. diffusers refuses them."""
    full = max(min(delta.shape) for delta in deltas.values())
    root = torch.linalg.qr(states, mode="r").R
    return _write(file, diff_tensors(deltas, getattr(torch, DTYPES[dtype])), deltas, root, note, full)


def _write(
    file: Path, tensors: dict[str, Tensor], deltas: dict[str, Tensor], root: Tensor, note: dict, rank: int
) -> LoraReport:
    """Writes the file with its errors, which are measured on what is stored: rounding is part of them."""
    stored = deltas_of(tensors, file)
    if any(not tensor.isfinite().all() for tensor in stored.values()):
        raise UserError(f"{file.name}: the differences are too large for half precision; use --dtype fp32")
    lost = {name: ((delta - stored[name]) @ root.T).norm().item() for name, delta in deltas.items()}
    norms = {name: (delta @ root.T).norm().item() for name, delta in deltas.items()}
    errors = {name: lost[name] / norms[name] if norms[name] else 0.0 for name in deltas}
    error = sum(x**2 for x in lost.values()) ** 0.5 / sum(x**2 for x in norms.values()) ** 0.5
    layers = {layer_name(name): error for name, error in errors.items()}
    noted = json.dumps(note | {"rank": rank, "error": error, "layers": layers})
    write_tensors(file, tensors, {"format": "pt", METADATA_KEY: noted})
    return LoraReport(file, rank, errors, error)


def write_embeddings(
    folder: Path, rows: dict[str, Tensor], aliases: dict[str, str], kohya: bool, widths: Sequence[int] = ()
) -> None:
    """{token: (n, D)}, one file per token, for diffusers, ComfyUI and A1111; and kohya's too, in kohya/.

    widths: of the base's text encoders. With two, as in SDXL, a file is {"clip_l": (n, D₁), "clip_g":
    (n, D₂)}, which all tools but diffusers read, kohya's too; diffusers loads the two tensors one by one.
    """
    for token, row in rows.items():
        name, row = f"{aliases[token]}.safetensors", torch.atleast_2d(row.float())
        if len(widths) == len(SDXL_KEYS):
            halves = zip(SDXL_KEYS, row.split(list(widths), dim=-1), strict=True)
            write_tensors(folder / name, {key: half.clone() for key, half in halves})
            continue
        write_tensors(folder / name, {token: row})
        if kohya:
            (folder / "kohya").mkdir(exist_ok=True)
            write_tensors(folder / "kohya" / name, {KOHYA_KEY: row})


def write_pipeline(folder: Path, base: str, path: Path, dtype: str) -> None:
    """A pipeline with everything merged, for from_pretrained of the base's stock pipeline."""
    opened = open_base(base, "cpu", "fp32").freeze()
    load_concept(opened, path)
    for encoder in opened.encoders:
        # SD 1.5's says 2, for which the libraries pool at the highest id: with a new token, at that.
        encoder.model.config.eos_token_id = encoder.tokenizer.eos_token_id
        encoder.tokenizer.chat_template = None  # whose names, in a stranger's base, would become file names
    cast_frozen(list(opened.modules.values()), getattr(torch, DTYPES[dtype]))
    for module in opened.modules.values():
        module.to(memory_format=torch.contiguous_format)  # safetensors writes no other layout
    with without_progress_bars(), system_errors():
        opened.pipeline.save_pretrained(folder)
    give_umask_mode(folder)


def write_official(folder: Path, weights: dict[str, Tensor], rows: dict[str, Tensor]) -> None:
    """As the original repository writes: K/V with an empty entry per self-attention, and a file per token."""
    content: dict[str, Tensor | dict] = {}
    for name, value in weights.items():
        layer, projection, _ = name.rsplit(".", 2)
        content[f"{layer}.processor.{projection}_custom_diffusion.weight"] = value.float().clone()
        content[f"{layer.replace('.attn2', '.attn1')}.processor"] = {}
    write_pickle(folder / f"{WEIGHTS_STEM}.bin", content)
    for token, row in rows.items():
        write_pickle(folder / f"{token}.bin", {token: row.float().clone()})

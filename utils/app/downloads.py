"""A trained concept to take away: its folder, a LoRA with its embedding, or an embedding, as a zip file."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from utils.app.jobs import Job
from utils.bases.registry import base_row
from utils.common.errors import UserError
from utils.common.folders import files_of
from utils.concepts.export import (
    aliases_of,
    base_kv,
    caption_states,
    check_exportable,
    differences,
    write_embeddings,
    write_lora,
)
from utils.concepts.formats import read_concept

LAYOUTS = {
    "concept": "Concept, for this program",
    "lora": "LoRA and embedding, for ComfyUI, A1111, diffusers",
    "embedding": "Embedding, for ComfyUI, A1111, diffusers, kohya",
}


def offers(job: Job) -> dict[str, str | None]:
    """layout -> None where the concept can be written in it, else why not. Empty while it is not trained."""
    if not job.is_trained:
        return {}
    reasons: dict[str, str | None] = {"concept": None}
    try:
        concept = read_concept(job.concept)
    except UserError as error:  # a damaged file: the page says so where it would offer them
        return dict.fromkeys(LAYOUTS, str(error))
    for layout in ("lora", "embedding"):
        try:
            check_exportable(concept, Path(job.name), layout)
            reasons[layout] = None
        except UserError as error:
            reasons[layout] = str(error)
    return reasons


def pack(job: Job, layout: str, folder: Path) -> Path:
    """Writes <job>.zip or <job>_<layout>.zip into `folder` and returns it.

    Raises UserError for a concept that is not trained yet, and for one that the layout cannot hold.
    """
    if not job.is_trained:
        raise UserError(f"{job.name} is not trained yet: there is nothing to download")
    name = job.name if layout == "concept" else f"{job.name}_{layout}"
    with TemporaryDirectory(dir=folder) as root:
        content = Path(root) / name
        content.mkdir()
        if layout == "concept":
            for file in files_of(job.concept).values():
                shutil.copy(file, content)
        else:
            _export(job, layout, content)
        return Path(shutil.make_archive(str(folder / name), "zip", root, name))


def _export(job: Job, layout: str, folder: Path) -> None:
    """What `python -m scripts.export --format <layout>` writes by default."""
    concept = read_concept(job.concept)
    check_exportable(concept, Path(job.name), layout)
    aliases = aliases_of(concept, Path(job.name), None)
    write_embeddings(folder, concept.rows, aliases, kohya=layout == "embedding")
    if layout == "embedding":
        return
    base = base_row(concept.base or job.form.base)
    deltas = differences(concept, base_kv(base.path, set(concept.weights), job.concept), job.concept)
    states = caption_states(base.path, concept)
    files = {token: f"{alias}.safetensors" for token, alias in aliases.items()}
    note = {"base": base.name, "classes": list(concept.classes), "tokens": files}
    write_lora(folder / f"{job.name}_lora.safetensors", deltas, states, note, None, None, "fp16")

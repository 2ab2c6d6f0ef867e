"""Write a trained concept for other tools.

    python -m scripts.export ckpt/dog --format lora                  # ComfyUI, A1111 and diffusers
    python -m scripts.export ckpt/dog exports/dog --format diffusers # a pipeline folder of its own

lora        K/V as a LoRA in kohya's layout, and the embeddings
diff        the exact differences, for ComfyUI and A1111, and the embeddings
embedding   a concept without K/V, for those tools, diffusers and kohya
diffusers   the base model with everything merged
official    the files of the original repository
"""

import os
import shutil
from dataclasses import MISSING, dataclass
from pathlib import Path

from utils.common.errors import UserError, exit_on_user_error
from utils.common.files import check_writable_folder, one_line, remove
from utils.common.flags import check_fields, option, parse
from utils.concepts.lora_error import LORA_ERROR

LAYOUTS = ("lora", "diff", "embedding", "diffusers", "official")
DEFAULT_DTYPES = {"lora": "fp16", "diff": "fp16", "diffusers": "fp32"}


@dataclass(frozen=True)
class ExportConfig:
    concept: Path = option(MISSING, "a trained concept's folder or file", positional=True)
    output: Path | None = option(None, "a new folder (default: CONCEPT_FORMAT)", positional=True)
    format: str = option("lora", "the layout", choices=LAYOUTS)
    base: str | None = option(None, "base model: name, folder, file or Hub id (default: the concept's own)")
    rank: int | None = option(None, "lora: the rank of every layer", minimum=1)
    error: float | None = option(
        None,
        "lora: the smallest rank whose keys and values, for captions of the concept, have at most this "
        "relative error; 0: the exact one "
        f"(default: {LORA_ERROR}, without --rank)",
        minimum=0,
        below=1,
    )
    alias: str | None = option(
        None,
        "lora, diff, embedding: the embeddings' file names, joined by +, which prompts name in ComfyUI and "
        "A1111; not a plain word (default: the class and a number, e.g. dog1)",
    )
    dtype: str | None = option(
        None, "lora, diff (default: fp16), diffusers (default: fp32)", choices=("fp16", "bf16", "fp32")
    )

    def __post_init__(self) -> None:
        check_fields(self)
        uses = {
            "rank": ("lora",),
            "error": ("lora",),
            "dtype": tuple(DEFAULT_DTYPES),
            "alias": LAYOUTS[:3],
            "base": tuple(layout for layout in LAYOUTS if layout != "embedding"),
        }
        for name, layouts in uses.items():
            if getattr(self, name) is not None and self.format not in layouts:
                raise UserError(
                    f"--{name} has no effect on --format {self.format}; it is for {', '.join(layouts)}"
                )
        if self.rank is not None and self.error is not None:
            raise UserError("--rank and --error both choose the rank; give one of them")


def main(argv: list[str] | None = None) -> None:
    config = parse(ExportConfig, argv, __doc__)
    from utils.bases.pretrained import check_named_base

    check_named_base(config.base)
    path = config.concept
    output = config.output or path.with_name(f"{path.stem}_{config.format}")
    output = output.resolve() if output.is_dir() else output  # of a link its target
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} exists and is not an empty folder; give a new one")
    check_writable_folder(output, "output")
    export(path, output, config)


def export(path: Path, output: Path, config: ExportConfig) -> None:
    """Writes into a hidden folder next to the output, which takes its name when all is written.

    A killed export leaves that folder, and the next one to the same output removes it.
    """
    from utils.bases.families import check_base  # here: the flags are checked before torch is imported
    from utils.bases.registry import base_row
    from utils.concepts.export import aliases_of, check_exportable
    from utils.concepts.formats import read_concept
    from utils.training.lock import LOCK_FILE, RunLock

    concept = read_concept(path)
    check_exportable(concept, path, config.format)
    aliases = aliases_of(concept, path, config.alias) if config.format in LAYOUTS[:3] else {}
    base = config.base or concept.base
    if config.format != "embedding":
        if base is None:
            raise UserError(f"{path} does not say what base model it was trained on; give it with --base")
        base = base_row(base).path
        check_base(base)
    staging = output.with_name(f".{output.name}.new")
    with one_line("write", output), RunLock(staging):
        for left in staging.iterdir():
            if left.name != LOCK_FILE:
                remove(left)
        try:
            _write_into(staging, path, concept, base, aliases, config)
            (staging / LOCK_FILE).unlink()
            if output.is_dir():
                output.rmdir()
            os.replace(staging, output)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    _describe(output, aliases, config)


def _write_into(
    folder: Path, path: Path, concept, base: str | None, aliases: dict, config: ExportConfig
) -> None:
    from utils.bases.registry import base_row
    from utils.concepts import export as formats

    dtype = config.dtype or DEFAULT_DTYPES.get(config.format)
    if config.format == "diffusers":
        return formats.write_pipeline(folder, base, path, dtype)
    widths = formats.widths_of(concept, base_row(base).path if base else None)
    if config.format == "embedding":
        return formats.write_embeddings(folder, concept.rows, aliases, kohya=True, widths=widths)
    start = formats.base_kv(base, set(concept.weights | concept.deltas), path)
    deltas = formats.differences(concept, start, path)
    if config.format == "official":
        merged = {name: start[name] + delta.float() for name, delta in concept.deltas.items()}
        return formats.write_official(folder, concept.weights | merged, concept.rows)
    formats.write_embeddings(folder, concept.rows, aliases, kohya=False, widths=widths)
    files = {token: f"{name}.safetensors" for token, name in aliases.items()}
    recorded = config.base or concept.base  # as it was given: a name or a relative path means more elsewhere
    note = {"base": recorded, "classes": list(concept.classes), "tokens": files}
    file = folder / f"{path.stem}_{config.format}.safetensors"
    if file.name in files.values():
        raise UserError(
            f"--alias {path.stem}_{config.format} is the name of the LoRA's own file; choose another"
        )
    states = formats.caption_states(base, concept)
    if config.format == "lora":
        report = formats.write_lora(file, deltas, states, note, config.rank, config.error, dtype)
    else:
        report = formats.write_diff(file, deltas, states, note, dtype)
    for name, error in report.errors.items():
        print(f"{name:80} error {error:.2e}")
    print(f"rank {report.rank}, {dtype}, relative error of all layers' outputs {report.error:.2e}")


def _describe(output: Path, aliases: dict[str, str], config: ExportConfig) -> None:
    for file in sorted(output.rglob("*.*")):
        if config.format != "diffusers" and file.is_file():
            print(f"{file} {file.stat().st_size / 1e6:.3f} MB")
    if config.format == "diffusers":
        print(f'DiffusionPipeline.from_pretrained("{output}")')
    for token, alias in aliases.items():
        print(f"{token} in diffusers is {alias} in A1111's prompts and embedding:{alias} in ComfyUI's")


if __name__ == "__main__":
    exit_on_user_error(main)

"""Merge concepts that were trained apart into one that has the tokens of all.

python -m scripts.merge_concepts ckpt/dog ckpt/barn --output ckpt/dog_barn
"""

from dataclasses import MISSING, dataclass
from pathlib import Path

from utils.common.errors import UserError, exit_on_user_error
from utils.common.files import check_writable_folder
from utils.common.flags import check_fields, option, parse


@dataclass(frozen=True)
class MergeConfig:
    concepts: tuple[Path, ...] = option(MISSING, "folder or file; two or more", positional=True)
    output: Path | None = option(None, "a new folder for the merged concept")
    base: str | None = option(None, "base model: name, folder, file or Hub id (default: the concepts' own)")

    def __post_init__(self) -> None:
        check_fields(self)
        if len(self.concepts) < 2:
            raise UserError(f"{self.concepts[0]} alone is nothing to merge; give two concepts or more")
        if self.output is None:
            raise UserError("--output is missing: give a new folder for the merged concept")
        if self.output.exists() and (not self.output.is_dir() or any(self.output.iterdir())):
            raise UserError(f"--output {self.output} exists and is not an empty folder; give a new one")
        check_writable_folder(self.output, "output")


def main(argv: list[str] | None = None) -> None:
    config = parse(MergeConfig, argv, __doc__)
    from utils.bases.pretrained import check_named_base

    check_named_base(config.base)
    merge_concepts(list(config.concepts), config)


def merge_concepts(paths: list[Path], config: MergeConfig) -> None:
    from utils.bases.families import (  # here: the flags are checked before torch is imported
        check_base,
        open_base,
    )
    from utils.bases.registry import base_row
    from utils.concepts.captions import regularisation_captions
    from utils.concepts.export import differences
    from utils.concepts.lora import is_kv_name
    from utils.concepts.merge import merge, without_clashes
    from utils.concepts.names import check_apart
    from utils.concepts.save import save_concept

    concepts = _concepts_of(paths)
    base = config.base or _base_of(paths, concepts)
    check_base(base_row(base).path)
    concepts, changes = without_clashes(concepts)
    for number, names in changes.items():
        for old, new in names.items():
            print(f"{old} of {paths[number]} is called {new}, because an earlier concept has that token")

    tokens = [token for concept in concepts for token in concept.rows]
    classes = [word for concept in concepts for word in concept.classes if word]
    check_apart(tokens, [*regularisation_captions(), *classes])
    opened = open_base(base_row(base).path, "cpu", "fp32")
    own = {name: p.detach() for name, p in opened.unet.named_parameters() if is_kv_name(name)}
    for path, concept in zip(paths, concepts, strict=True):
        names = concept.weights.keys() | concept.deltas.keys()
        if names and names != own.keys():
            raise UserError(
                f"{path} trained {len(names)} weights that are not the {len(own)} K and V of {base}"
            )
        if names:
            differences(concept, own, path)  # raises for another shape
    merged = merge(concepts, own, opened, regularisation_captions())
    kv = {name: weight.float() for name, weight in merged.weights.items()}
    save_concept(
        config.output,
        kv,
        merged.rows,
        base=base,
        classes=merged.classes,
        widths=[encoder.width for encoder in opened.encoders],
    )
    if merged.dropped:
        print(f"{merged.dropped} rows of target words were equal to earlier ones and count once")
    print(f"the concepts' phrases are met to {merged.residual:.0e}")
    print(f"K and V of other captions move by {merged.drift:.2%}, the matrices by {merged.change:.2%}")
    captions, phrases = merged.conditions
    print(f"condition number {captions:.1e} of the captions, {phrases:.1e} of the concepts' phrases")
    subjects = [f"{t} {c}" if c else t for t, c in zip(merged.rows, merged.classes, strict=True)]
    print(f"{config.output}: {', '.join(subjects)}")


def _concepts_of(paths: list[Path]) -> list:
    """The concepts, if they can be merged: each has a token, one has K/V, none trained anything else."""
    from utils.concepts.embeddings import check_one_vector
    from utils.concepts.export import parts_beyond
    from utils.concepts.formats import read_concept

    concepts = [read_concept(path) for path in paths]
    check_one_vector(concepts, "merging")
    for path, concept in zip(paths, concepts, strict=True):
        if not concept.rows:
            raise UserError(f"{path} has no token, and only what tokens mean can be merged")
        if others := parts_beyond(concept):
            raise UserError(f"{path} trained {others[0]}; only K/V and token rows can be merged")
    if not any(concept.weights or concept.deltas for concept in concepts):
        raise UserError("no concept has K/V, so nothing needs merging; give inference.py several --concept")
    return concepts


def _base_of(paths: list[Path], concepts: list) -> str:
    """The one base that the concepts were trained on, as the first of them names it."""
    from utils.bases.registry import base_row

    named = [(path, concept.base) for path, concept in zip(paths, concepts, strict=True) if concept.base]
    if not named:
        raise UserError(f"{paths[0]} does not say what base model it was trained on; give it with --base")
    if len({base_row(base).path for _, base in named}) > 1:
        listed = ", ".join(f"{path} on {base}" for path, base in named)
        raise UserError(
            f"the concepts were trained on different base models ({listed}); they cannot be merged"
        )
    return named[0][1]


if __name__ == "__main__":
    exit_on_user_error(main)

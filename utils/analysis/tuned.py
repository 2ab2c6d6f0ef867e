"""The concepts that an analysis compares: read and checked before a model loads, opened one at a time."""

from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.bases.registry import BASES, Base, base_row, portable
from utils.common.errors import UserError
from utils.common.files import check_writable_folder, write_json
from utils.common.flags import check_fields, option, seed_option

if TYPE_CHECKING:
    from utils.bases.base import BaseModel


@dataclass(frozen=True)
class AnalysisFlags:
    """What every analysis asks for."""

    concepts: tuple[Path, ...] = option(MISSING, "trained folders, to be compared", positional=True)
    base: str | None = option(None, f"{', '.join(BASES)}, folder or Hub id (default: the concepts')")
    output_dir: Path | None = option(None, "folder of the results (default: outputs/ and the command's name)")
    seed: int = seed_option("seed of every draw")
    device: str | None = option(None, "cuda, mps or cpu (default: the first of them that is here)")

    def __post_init__(self) -> None:
        check_fields(self)

    def folder(self, name: str) -> Path:
        """The folder of the results. Raises UserError where nothing can be written."""
        folder = self.output_dir or Path("outputs") / name
        check_writable_folder(folder, "output_dir")
        return folder


@dataclass(frozen=True)
class Tuned:
    """A concept: what charts call it, its folder, token, class word and phrase ("<new1> dog"), its method."""

    name: str
    path: Path
    token: str
    word: str
    subject: str
    method: str | None


def read_tuned(paths: Sequence[Path], base: str | None, text_states: bool = True) -> tuple[Base, list[Tuned]]:
    """The base's row and a concept for each token of each path. text_states: whether phrases' are read.

    Raises UserError for what is no concept, one without a token or a class, a path twice, several bases, and,
    before it imports torch, for a base that is not here.
    """
    from utils.bases.pretrained import check_named_base

    check_named_base(base)
    from utils.bases.families import family_of
    from utils.concepts.formats import read_concept
    from utils.learners.registry import check_has_text_states
    from utils.sampling.prompts import recorded_base

    if len(set(paths)) < len(paths):
        raise UserError("a concept is given twice; give each once")
    contents = {path: read_concept(path) for path in paths}
    tuned = []
    for path, content in contents.items():
        if text_states:
            check_has_text_states(content.parts, path)
        if not content.rows:
            raise UserError(f"{path} has no token, so that no phrase names it; give a concept with one")
        if len(content.classes) != len(content.rows) or None in content.classes:
            raise UserError(f"{path} does not say its class; train it with --cls_token")
        name = path.name if [p.name for p in paths].count(path.name) == 1 else str(path)
        for token, word in zip(content.rows, content.classes, strict=True):
            own = name if len(content.rows) == 1 else f"{name} {token}"
            subject = content.subject.format(token=token, cls=word)
            tuned.append(Tuned(own, path, token, word, subject, content.method))
    base = base or recorded_base(list(contents.values())) or "toon"
    family_of(base_row(base).path)  # raises for a base that is none
    return base_row(base), tuned


def open_model(row: Base, device: str | None, path: Path | None = None) -> "BaseModel":
    """The base in float32, with the concept at `path` merged into it if one is given."""
    from utils.bases.devices import choose_device_dtype
    from utils.bases.families import load_base
    from utils.concepts.load import load_concept

    base = load_base(row.path, choose_device_dtype(device)[0])
    if path is not None:
        load_concept(base.pipeline, path)
    return base


def described(row: Base, base: "BaseModel", tuned: Sequence[Tuned], **facts: Any) -> dict[str, Any]:
    """What a file of results begins with: the base, the concepts, and what else the numbers depend on."""
    concepts = [vars(each) | {"path": str(each.path)} for each in tuned]
    return {
        "base": portable(row.path),
        "base_digest": base.fingerprint(),
        "concepts": concepts,
    } | facts


def report(file: Path, results: dict[str, Any], lines: Iterable[str], charts: Sequence[Path]) -> None:
    """Write an analysis's numbers, then print its lines and where all is."""
    write_json(file, results)
    for line in lines:
        print(line)
    print(f"numbers in {file}, charts in {', '.join(map(str, charts))}")

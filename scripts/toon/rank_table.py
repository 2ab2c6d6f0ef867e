"""What a LoRA of K/V concepts loses by its rank, on toon: its size, energy kept, words obeyed, likeness.

python -m scripts.toon.rank_table ckpt/dog ckpt/cat_1 --images 2

Every rank is exported as `python -m scripts.export --format lora` does, read by `load_concept`, and draws the
situations of scripts/toon/prompt_accuracy.py with the exact concept's seeds. Its images are compared with
the exact ones pair by pair: means with 95 % t intervals over the images of all concepts. Error is
that of the stored numbers over all layers, relative, and energy kept 1 minus its square; of several concepts
both are means. DINO-I is the mean over the concept's own images.
"""

from __future__ import annotations

import tempfile
from contextlib import redirect_stdout
from dataclasses import MISSING, dataclass
from io import StringIO
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from utils.bases.registry import BASES
from utils.common.errors import UserError, exit_on_user_error
from utils.common.files import check_writable_folder, write_json, write_text
from utils.common.flags import check_fields, option, parse

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

RANKS = (1, 2, 4, 8, 16, 32, 64)
DINO = BASES["toon"].judges["dino"]
HEAD = (
    "| rank | MB | error | energy kept | words obeyed | against exact | DINO-I | against exact |\n|"
    + "---|" * 8
)
Scores = dict[str, list[float]]  # of a number of images: "words" obeyed, 0 or 1, and "dino_i"


@dataclass(frozen=True)
class Subject:
    """A concept, the prompts for it, and the DINO features of its own images, (R, D)."""

    path: Path
    prompts: list[Any]
    real: Tensor


@dataclass(frozen=True)
class Flags:
    """The flags of this command."""

    concepts: tuple[Path, ...] = option(
        MISSING, "concepts with K/V, each of one token and its class", positional=True
    )
    rank: tuple[int, ...] = option((), f"repeatable (default: {RANKS})", minimum=1)
    images: int = option(1, "images per prompt", minimum=1)
    num_inference_steps: int = option(25, "denoising steps", minimum=1)
    guidance_scale: float = option(3.0, "weight of the prompt", minimum=0)
    batch_size: int = option(13, "images at a time", minimum=1)
    output_dir: Path = option(Path("outputs/rank_table"), "folder of the table")

    def __post_init__(self) -> None:
        check_fields(self)
        if len(set(self.rank)) < len(self.rank):
            raise UserError("--rank is given twice with one value: name each once")

    @property
    def settings(self) -> dict[str, float]:
        """How images are drawn, for utils.sampling.images.sample."""
        names = ("num_inference_steps", "guidance_scale", "batch_size")
        return {name: getattr(self, name) for name in names}


def subject_of(path: Path) -> Subject:
    from scripts.toon.prompt_accuracy import trained_concept
    from scripts.toon.world.prompts import situations
    from utils.common.images import list_images, open_image
    from utils.scores.encoders import DinoEncoder

    concept = trained_concept(path)
    images = map(open_image, list_images(concept.instance_data_dir)[0])
    real = DinoEncoder(DINO, "cpu").image_features(images)
    return Subject(path, situations(concept.cls_token, concept.subject), real)


def export_rank(concept: Path, folder: Path, rank: int) -> tuple[float, float]:
    """Write a LoRA of this rank into a new folder; (its MB, its relative error)."""
    from scripts.export import main as export
    from utils.concepts.lora import read_note

    with redirect_stdout(StringIO()):
        export([str(concept), str(folder), "--format=lora", f"--rank={rank}"])
    file = folder / f"{concept.stem}_lora.safetensors"
    return file.stat().st_size / 1e6, read_note(file)["error"]


def scores_of(images: list[Image.Image], subject: Subject, each: int) -> Scores:
    """For every image: whether it obeys all words of its prompt, and its DINO-I to the real images."""
    from scripts.toon.models.recogniser import Recogniser
    from utils.scores.encoders import DinoEncoder

    facts = [stated for _, stated in subject.prompts for _ in range(each)]
    read = Recogniser().read(images)
    words = [float(all(r[k] == v for k, v in f.items())) for r, f in zip(read, facts, strict=True)]
    features = DinoEncoder(DINO, "cpu").image_features(images)  # (N, D)
    return {"words": words, "dino_i": (features @ subject.real.T).mean(dim=1).tolist()}


def drawn(config: Flags, subject: Subject, path: Path, grid: Path) -> Scores:
    """The scores of the images that the concept at `path` draws."""
    from scripts.toon.prompt_accuracy import draw
    from utils.bases.families import load_pipeline
    from utils.concepts.load import load_concept

    pipeline = load_pipeline(BASES["toon"].path, "cpu", "fp32")
    load_concept(pipeline, path)
    texts = [text for text, _ in subject.prompts]
    images = draw(pipeline, texts, config.images, grid, **config.settings)
    return scores_of(images, subject, config.images)


def row(name: str, mb: float, errors: list[float], found: Scores, exact: Scores) -> str:
    """A line of the table."""
    from utils.scores.statistics import mean_interval

    energy = [1 - error**2 for error in errors]
    cells = [name, f"{mb:.3f}", f"{fmean(errors):.3f}", f"{fmean(energy):.4f}"]
    for score, shown in (("words", "{:.1%}"), ("dino_i", "{:.3f}")):
        cells.append(shown.format(fmean(found[score])))
        apart = mean_interval([a - b for a, b in zip(found[score], exact[score], strict=True)])
        cells.append("{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**vars(apart)))
    return "| " + " | ".join(cells) + " |"


def table(config: Flags) -> tuple[list[str], dict[str, Any]]:
    """The lines of the table, the exact concepts first, and all numbers."""
    from utils.concepts.formats import read_concept

    subjects = [subject_of(path) for path in config.concepts]
    weights = read_concept(config.concepts[0]).weights.values()
    full = max(min(value.shape) for value in weights)
    lines, numbers, exact = [HEAD], {}, None
    for rank in (None, *(config.rank or [rank for rank in RANKS if rank < full])):
        name, errors, found = "exact" if rank is None else str(rank), [], {"words": [], "dino_i": []}
        for i, subject in enumerate(subjects):
            with tempfile.TemporaryDirectory() as folder:
                path, mb, error = subject.path, sum(value.numel() for value in weights) * 2 / 1e6, 0.0
                if rank is not None:
                    path = Path(folder) / "lora"
                    mb, error = export_rank(subject.path, path, rank)
                of_subject = drawn(config, subject, path, config.output_dir / f"{i}-rank-{name}.png")
            errors.append(error)
            found = {score: found[score] + values for score, values in of_subject.items()}
        exact = exact or found
        lines.append(row(name, mb, errors, found, exact))
        numbers[name] = {"mb": mb, "errors": errors} | found
        print(lines[-1], flush=True)
    return lines, numbers


def main(argv: list[str] | None = None) -> None:
    config = parse(Flags, argv, __doc__)
    check_writable_folder(config.output_dir, "output_dir")
    lines, numbers = table(config)
    write_text(config.output_dir / "ranks.md", "\n".join(lines) + "\n")
    write_json(config.output_dir / "ranks.json", numbers)
    print(f"the table and its images are in {config.output_dir}")


if __name__ == "__main__":
    exit_on_user_error(main)

"""Prompts to images of a trained concept, as inference.py draws them, one after the other."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from utils.app.jobs import Job
from utils.bases.registry import base_row, shown
from utils.errors import UserError
from utils.files import one_line
from utils.images import save_png
from utils.sampling.grids import save_grid, slugs
from utils.sampling.prompts import check_modifier_tokens, read_prompts
from utils.sampling.settings import DrawingFlags

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from utils.concepts.weights import ConceptWeights

BATCH = 2  # images at a time: few, so that they appear soon
MOST_IMAGES = 64  # of one request


@dataclass(frozen=True)
class Drawing:
    """One request, all of it checked. jobs: (prompt, seed), row by row as the grid shows them."""

    concept: Path
    base: str
    prompts: list[str]
    pairs: list[tuple[str, int]]
    settings: dict
    folder: Path
    notes: list[str]


def lines_of(text: str) -> list[str]:
    """The prompts in a text, one a line."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def prepare(job: Job, text: str, count: int, seed: int) -> Drawing:
    """Raises UserError for what inference.py refuses, and for no prompt at all. Writes nothing."""
    from utils.concepts.formats import read_concept

    if not job.is_trained:
        raise UserError(f"{job.name} is not trained yet: wait for its end, or resume it")
    prompts = read_prompts(lines_of(text), None)
    if not prompts:
        raise UserError(f"no prompt: write one a line, e.g. a {job.form.subject} in the snow")
    if not 1 <= count * len(prompts) <= MOST_IMAGES:
        raise UserError(f"{count} x {len(prompts)} images: ask for 1 to {MOST_IMAGES} at a time")
    flags = DrawingFlags(concept=(job.concept,), prompt=tuple(prompts), seed=seed)
    concept = read_concept(job.concept)
    row = base_row(concept.base or job.form.base)
    check_modifier_tokens(prompts, row.path, [concept])
    pairs = [(prompt, seed + i) for prompt in prompts for i in range(count)]
    drawn = job.folder / "drawn"
    numbers = [int(path.name) for path in drawn.glob("*") if path.name.isdecimal()]
    folder = drawn / str(max(numbers, default=0) + 1)
    notes = without_token(prompts, concept)
    return Drawing(job.concept, row.path, prompts, pairs, flags.settings(row.sampling), folder, notes)


def without_token(prompts: Sequence[str], concept: "ConceptWeights") -> list[str]:
    """A note for each prompt that names no token of the concept, and so shows its class at most."""
    tokens = list(concept.rows)
    return [
        f"“{prompt}” lacks {' and '.join(tokens)}: it may show the class, not your subject"
        for prompt in prompts
        if not any(token.lower() in prompt.lower() for token in tokens)
    ]


class Painter:
    """Draws, one request at a time; keeps the pipeline of the last concept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: tuple[tuple[Path, int], StableDiffusionPipeline] | None = None

    def draw(self, drawing: Drawing) -> Iterator[Path]:
        """Yields each image's file as it is written, row by row; the grid, grid.png, comes last."""
        from utils.sampling.images import sample

        with self._lock:
            pipeline = self._pipeline(drawing)
            with one_line("make", drawing.folder):
                drawing.folder.mkdir(parents=True)
            stems = dict(zip(drawing.prompts, slugs(drawing.prompts), strict=True))
            record = drawing.settings | {"base": shown(drawing.base), "concept": str(drawing.concept)}
            images = []
            drawn = sample(pipeline, *zip(*drawing.pairs, strict=True), batch_size=BATCH, **drawing.settings)
            for (prompt, seed), image in zip(drawing.pairs, drawn, strict=True):
                path = drawing.folder / f"{stems[prompt]}_{seed}.png"
                save_png(image, path, {"prompt": prompt, "seed": seed} | record)
                images.append(image)
                yield path
            save_grid(images, drawing.prompts, drawing.folder / "grid.png", record)

    def _pipeline(self, drawing: Drawing) -> "StableDiffusionPipeline":
        from utils.bases.sd import load_pipeline
        from utils.concepts.load import load_concept

        key = (drawing.concept, (drawing.concept / "training_config.json").stat().st_mtime_ns)
        if self._kept is None or self._kept[0] != key:
            self._kept = None  # the old one goes before the new one comes
            pipeline = load_pipeline(drawing.base)
            load_concept(pipeline, drawing.concept)
            self._kept = (key, pipeline)
        return self._kept[1]

"""Prompts to images of a trained concept, as inference.py draws them, one after the other."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from utils.app.jobs import TRAINED_FILE, Job
from utils.common.errors import UserError
from utils.common.files import one_line
from utils.sampling.drawing import Drawing, prepare
from utils.sampling.grids import save_grid
from utils.sampling.prompts import without_token
from utils.sampling.settings import DrawingFlags

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


BATCH = 2  # images at a time: few, so that they appear soon
MOST_IMAGES = 64  # of one request


@dataclass(frozen=True)
class Request:
    """One request, all of it checked: every prompt with every seed, a row of the grid each."""

    drawing: Drawing
    seeds: range
    folder: Path
    notes: list[str]

    @property
    def prompts(self) -> list[str]:
        return self.drawing.prompts


def lines_of(text: str) -> list[str]:
    """The prompts in a text, one a line."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def request_of(job: Job, text: str, count: int, seed: int) -> Request:
    """Raises UserError for what inference.py refuses, and for no prompt at all. Writes nothing."""
    if not job.is_trained:
        raise UserError(f"{job.name} is not trained yet: wait for its end, or resume it")
    prompts = lines_of(text)
    if not prompts:
        raise UserError(f"no prompt: write one a line, e.g. a {job.form.subject} in the snow")
    flags = DrawingFlags(concept=(job.concept,), prompt=tuple(prompts), seed=seed, output_dir=job.folder)
    drawing = prepare(flags, flags.concept, lambda _: [])
    if not 1 <= count * len(drawing.prompts) <= MOST_IMAGES:
        raise UserError(f"{count} x {len(drawing.prompts)} images: ask for 1 to {MOST_IMAGES} at a time")
    drawn = job.folder / "drawn"
    numbers = [int(path.name) for path in drawn.glob("*") if path.name.isdecimal()]
    notes = without_token(drawing.prompts, drawing.concepts)
    return Request(drawing, range(seed, seed + count), drawn / str(max(numbers, default=0) + 1), notes)


class Painter:
    """Draws, one request at a time; keeps the pipeline of the last concept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: tuple[tuple[Path, int], DiffusionPipeline] | None = None

    def draw(self, request: Request) -> Iterator[Path]:
        """Yields each image's file as it is written, row by row; the grid, grid.png, comes last."""
        from utils.sampling.images import draw, jobs_of

        drawing, folder = request.drawing, request.folder
        with self._lock:
            pipeline = self._pipeline(drawing)
            with one_line("make", folder):
                folder.mkdir(parents=True)
            jobs, images = jobs_of(request.prompts, request.seeds, folder), []
            drawn = draw(pipeline, jobs, drawing.record, batch_size=BATCH, **drawing.settings)
            for (*_, path), image in zip(jobs, drawn, strict=True):
                images.append(image)
                yield path
            save_grid(images, request.prompts, folder / "grid.png", drawing.record)

    def _pipeline(self, drawing: Drawing) -> "DiffusionPipeline":
        (concept,) = drawing.paths
        key = (concept, (concept / TRAINED_FILE).stat().st_mtime_ns)
        if self._kept is None or self._kept[0] != key:
            self._kept = None  # the old one goes before the new one comes
            self._kept = (key, drawing.load())
        return self._kept[1]

"""A training that the page started: its folder, and what its files say about how far it is.

<folder>/dog-1/images/        the uploads, as they were sent
               concept/       the training's output folder: log, checkpoints, samples, the concept
               job.json       what was asked; written last, so that a folder without it is no job
               train.txt      what the training printed
               drawn/1/       images of prompts, with their grid
"""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from utils.app.form import Form
from utils.common.errors import UserError
from utils.common.files import one_line, read_json, read_records, shown, write_json
from utils.common.images import is_image
from utils.config.train_config import parse_config
from utils.training.checkpoints import step_of

RECORD = "job.json"
TRAINED_FILE = "training_config.json"  # the last that a training writes


@dataclass(frozen=True)
class Job:
    """One training. form: what was asked; flags: of the training command, with absolute paths."""

    folder: Path
    form: Form
    flags: tuple[str, ...]
    steps: int

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def concept(self) -> Path:
        return self.folder / "concept"

    @property
    def printed(self) -> Path:
        return self.folder / "train.txt"

    @property
    def is_trained(self) -> bool:
        return (self.concept / TRAINED_FILE).is_file()

    def log(self) -> list[dict[str, Any]]:
        """A record for each step; none before the first."""
        return read_records(self.concept / "log.jsonl")

    def saved_step(self) -> int:
        """The step of the newest checkpoint, 0 while there is none."""
        return max(map(step_of, self.concept.glob("checkpoint-*")), default=0)

    def class_images(self) -> tuple[int, int]:
        """(how many there are, how many the method wants); (0, 0) for one without class images."""
        config = parse_config(list(self.flags))
        if not config.uses_prior:
            return 0, 0
        folder = config.concepts()[0].class_data_dir
        return sum(map(is_image, folder.glob("*"))), config.num_class_images

    def samples(self) -> list[tuple[int, list[Path]]]:
        """(step, the images drawn after it), oldest first; a set counts when its grid, the last, is there."""
        grids = sorted((self.concept / "validation").glob("step-*/grid.png"))
        return [
            (int(grid.parent.name.partition("-")[2]), sorted(grid.parent.glob("seed-*.png")))
            for grid in grids
        ]

    def error(self) -> str:
        """The error that ended the training, as it was printed; "" if none was."""
        if not self.printed.is_file():
            return ""
        text = self.printed.read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line.partition("error:")[2].strip() for line in lines if line.startswith("error:")]
        if lines and re.match(r"[\w.]*(Error|Exception)\b", lines[-1]):  # of a traceback
            errors.append(lines[-1])
        return errors[-1] if errors else ""


def new_folder(parent: Path, cls: str) -> Path:
    """A folder that nobody has yet: the class word and the first free number."""
    stem = re.sub(r"\W+", "-", cls.lower())[:40].strip("-_") or "concept"
    number = 1
    with one_line("make a folder in", parent):
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            folder = parent / f"{stem}-{number}"
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                number += 1


def save_job(job: Job) -> None:
    write_json(job.folder / RECORD, {"form": asdict(job.form), "flags": job.flags, "steps": job.steps})


def read_job(folder: Path) -> Job:
    """Raises UserError for a job.json that this page did not write."""
    record = read_json(folder / RECORD)
    try:
        form = Form(**record["form"])
        return Job(folder, form, tuple(map(str, record["flags"])), int(record["steps"]))
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{shown(folder / RECORD)} is not a job of this page: remove its folder") from error


def list_jobs(parent: Path) -> list[Job]:
    """All jobs, the newest first. Raises UserError as `read_job` does."""
    records = [(path.stat().st_mtime_ns, path.parent.name, path) for path in parent.glob(f"*/{RECORD}")]
    return [read_job(path.parent) for _, _, path in sorted(records, reverse=True)]

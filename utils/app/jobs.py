"""A training that the page started: its folder, and what its files say about how far it is.

<folder>/dog-1/images/        the uploads, as they were sent
               concept/       the training's output folder: log, checkpoints, samples, the concept
               job.json       what was asked; written last, so that a folder without it is not a job
               train.txt      what the training printed
               drawn/1/       images of prompts, with their grid
"""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from utils.app.form import Form
from utils.common.errors import UserError
from utils.common.files import one_line, read_records, shown, write_json
from utils.common.images import is_image
from utils.config.methods import METHODS
from utils.config.train_config import parse_config

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
        """A record for each step; none before the first. Raises UserError for a damaged log."""
        path = self.concept / "log.jsonl"
        records = read_records(path)
        if not all(type(record.get("step")) is int for record in records):
            raise UserError(f"{shown(path)} has a line without a step: repair or remove it")
        return records

    def saved_step(self) -> int:
        """The step of the newest checkpoint, 0 while there is none."""
        names = (path.name for path in self.concept.glob("checkpoint-*"))
        return max((int(name[11:]) for name in names if re.fullmatch(r"checkpoint-\d+", name)), default=0)

    def class_images(self) -> tuple[int, int]:
        """(how many there are, how many the method wants); (0, 0) for one without class images."""
        config = parse_config(list(self.flags))
        if not config.uses_prior:
            return 0, 0
        folder = config.concepts()[0].class_data_dir
        return sum(map(is_image, folder.glob("*"))), config.num_class_images

    def samples(self) -> list[tuple[int, list[Path]]]:
        """(step, the images drawn after it), oldest first; a set counts when its grid, the last, is there."""
        found = sorted((self.concept / "validation").glob("step-*/grid.png"))
        grids = [grid for grid in found if re.fullmatch(r"step-\d+", grid.parent.name)]
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
    path = folder / RECORD
    try:
        with one_line("read", path):
            record = json.loads(path.read_text(encoding="utf-8"))
        form, flags = Form(**record["form"]), tuple(record["flags"])
        texts = (form.cls, form.base, form.method, form.token, form.prompt, *flags)
        numbers = (form.seed, record["steps"], *([] if form.steps is None else [form.steps]))
        right = all(isinstance(text, str) for text in texts) and form.method in METHODS
        if right and all(type(number) is int for number in numbers):
            return Job(folder, form, flags, record["steps"])
    except UserError:
        raise
    except (TypeError, KeyError, ValueError, RecursionError):
        pass
    raise UserError(f"{shown(path)} is not a job of this page: bring it back, or remove its folder")


def read_jobs(parent: Path) -> tuple[list[Job], list[str]]:
    """All jobs, the newest first, and a line for each folder whose job.json cannot be used."""
    records = [(path.lstat().st_mtime_ns, path.parent.name, path) for path in parent.glob(f"*/{RECORD}")]
    jobs, damaged = [], []
    for _, _, path in sorted(records, reverse=True):
        try:
            jobs.append(read_job(path.parent))
        except UserError as error:
            damaged.append(str(error))
    return jobs, damaged


def list_jobs(parent: Path) -> list[Job]:
    """All jobs that can be used, the newest first."""
    return read_jobs(parent)[0]

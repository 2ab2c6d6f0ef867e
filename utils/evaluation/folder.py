"""The results folder of an evaluation: written so that a killed run goes on where it was.

results/
  settings.json, subjects.json      the settings of the run
  <method>/<subject>/               concept/, images/, class/, records.jsonl, scores.json
  table.json, table.md, report.html
"""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from utils.common.errors import UserError
from utils.common.files import read_json, read_records, write_json

BASE = "base"  # in a method's place: the untouched model, which is given class prompts
PICTURES = "pictures"  # in a results folder: the images that a benchmark draws itself
NOT_COMPARED = frozenset({"hardware"})  # a run may go on elsewhere
# More of these add to a folder and change nothing in it: methods, and judges with their scores.
MAY_GROW = frozenset({"methods", "train_flags", "metrics", "models"})
SCORES_FILE, SETTINGS_FILE = "scores.json", "settings.json"


@dataclass(frozen=True)
class Drawing:
    """How the images of a run are made.

    train_flags: of each method that is trained. num_class_images: of the class alone, for PRES. dtype: of the
    model that draws. embedding_adjustment: a share of the angle, and _norm of the length;
    both None without.
    """

    train_flags: dict[str, list[str]]
    num_class_images: int
    num_inference_steps: int
    guidance_scale: float
    eta: float
    dtype: str
    scheduler: str = "ddim"
    embedding_adjustment: float | None = None
    embedding_adjustment_norm: float | None = None

    @property
    def sampling(self) -> dict[str, Any]:
        """Keyword arguments of utils.sampling.images.sample."""
        names = ("num_inference_steps", "guidance_scale", "eta", "scheduler")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Settings:
    """All that the numbers of a run depend on, and the hardware. drawing: None for images that were there.

    models: the judges by kind, and BLIP's head. digest: of the files that the run rests on.
    """

    dataset: str | None
    source: str
    digest: str
    base: str
    methods: list[str]
    subjects: list[str]
    templates: list[str]
    metrics: list[str]
    models: dict[str, str]
    seeds: list[int]
    versions: dict[str, str]
    hardware: dict[str, Any]
    drawing: Drawing | None = None

    def as_json(self) -> dict[str, Any]:
        """As settings.json holds them: those of the drawing stand among the others, an adjustment that is not
        made is not there."""
        flat = asdict(self)
        drawing = flat.pop("drawing") or {}
        if drawing and drawing["embedding_adjustment"] is None:
            del drawing["embedding_adjustment"], drawing["embedding_adjustment_norm"]
        return flat | drawing


@dataclass(frozen=True)
class Scores:
    """scores.json of a method and subject. metric: name -> value. models: name -> what measured it."""

    metric: dict[str, float]
    models: dict[str, str]
    images: int

    @classmethod
    def read(cls, folder: Path) -> "Scores":
        """Those of a method's and subject's folder. Raises UserError if the file is of another form."""
        found = read_json(folder / SCORES_FILE)
        try:
            return cls(found["metric"], found["models"], found["images"])
        except (TypeError, KeyError) as error:
            raise UserError(f"{folder / SCORES_FILE} holds no scores: remove it") from error

    def write(self, folder: Path) -> None:
        write_json(folder / SCORES_FILE, asdict(self))


def is_scored(folder: Path, metrics: Collection[str]) -> bool:
    """Whether a method's and subject's folder has all these scores."""
    return (folder / SCORES_FILE).is_file() and set(metrics) <= Scores.read(folder).metric.keys()


def read_image_records(file: Path) -> list[dict[str, Any]]:
    """A record for each image; a judge that came later has added lines of its own, which are put together."""
    merged: dict[str, dict[str, Any]] = {}
    for record in read_records(file):
        merged.setdefault(str(record.get("image")), {}).update(record)
    return list(merged.values())


def check_settings(folder: Path, settings: Settings) -> None:
    """Raises UserError if `folder` holds a run with other settings, whose images and scores would be mixed
    with this one's, or if it is not a folder. Methods and judges may be added."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder} is a file; give a folder")
    path = folder / SETTINGS_FILE
    if not path.is_file():
        return
    before, now = read_json(path), json.loads(json.dumps(settings.as_json()))
    if not isinstance(before, dict):
        raise UserError(f"{path} holds no settings; give another --output_dir, or remove what is in this one")
    if not any(each.parts[-3] != PICTURES for each in folder.glob("*/*/*")):
        return  # nothing was trained or drawn with them
    for name in sorted(before.keys() | now.keys()):
        if name in NOT_COMPARED or before.get(name) == now.get(name):
            continue
        if name in MAY_GROW and _grown(before.get(name), now.get(name)):
            continue
        raise UserError(
            f"{folder} holds a run with other settings: {name} was {before.get(name)!r}, "
            f"is {now.get(name)!r}; give the same, or another --output_dir"
        )


def _grown(before: Any, now: Any) -> bool:
    """Whether a list, or a dictionary, holds all that it held before."""
    if isinstance(before, dict) and isinstance(now, dict):
        return all(name in now and now[name] == value for name, value in before.items())
    return isinstance(before, list) and isinstance(now, list) and all(each in now for each in before)

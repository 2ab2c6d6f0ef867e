"""The results folder of scripts.evaluate, as the report reads it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.common.errors import UserError, short
from utils.common.files import path_inside, read_records
from utils.common.limits import check_file_name
from utils.evaluation.folder import read_image_records

FILES = {"settings.json": dict, "subjects.json": list, "table.json": dict}
WRITER = "scripts.evaluate"


@dataclass(frozen=True)
class Results:
    """What a finished run left: settings, subjects, table. Records and logs are read when asked for."""

    folder: Path
    settings: dict[str, Any]
    subjects: list[dict[str, Any]]
    table: dict[str, Any]

    @property
    def methods(self) -> list[str]:
        """In the table's order; BASE is among them if it was sampled."""
        return [row["method"] for row in self.table["rows"]]

    @property
    def metrics(self) -> list[str]:
        return self.table["metrics"]

    @property
    def seeds(self) -> list[int]:
        return self.table["seeds"]

    def records(self, method: str, subject: str) -> list[dict[str, Any]]:
        """One dictionary per image; nothing where the method did not draw the subject."""
        return read_image_records(self.folder / method / subject / "records.jsonl")

    def image(self, record: dict[str, Any]) -> Path:
        """The file of a record's image. Raises UserError for one that is not in the folder."""
        return path_inside(self.folder, record.get("image"), f"{self.folder}: a record")

    def log(self, method: str, subject: str) -> list[dict[str, float]]:
        """The training's lines, one per step; empty where there is no log."""
        return read_records(self.folder / method / subject / "concept" / "log.jsonl")

    def real_images(self, subject: dict[str, Any]) -> list[Path]:
        """The subject's own images that are still there, as recorded or under its folder."""
        folder = Path(subject.get("folder") or self.folder)
        paths = []
        for name in subject.get("pictures", []):
            candidates = (Path(name), folder / name, self.folder / name)
            paths += [path for path in candidates if path.is_file()][:1]
        return paths


def read_results(folder: Path) -> Results:
    """Raises UserError if `folder` is not a results folder, or if its run has not reached the table."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the results folder that {WRITER} wrote")
    parts: dict[str, Any] = {}
    for name, kind in FILES.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"no {name} in {folder}: not the folder of a finished run; run {WRITER} first")
        try:
            parts[path.stem] = json.loads(path.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not JSON ({short(error, 100)}); run {WRITER} again") from error
        if not isinstance(parts[path.stem], kind):
            raise UserError(f"{path} does not hold a JSON {kind.__name__}; run {WRITER} again")
    table = parts["table"]
    if (
        not all(isinstance(table.get(name), list) for name in ("metrics", "rows", "seeds"))
        or not table["rows"]
    ):
        raise UserError(f"{folder / 'table.json'} holds no metrics, rows or seeds; run {WRITER} again")
    _check_names(folder, parts["subjects"], table["rows"])
    return Results(folder, **parts)


def _check_names(folder: Path, subjects: list[Any], rows: list[Any]) -> None:
    """Raises UserError for a subject or a method whose name is not that of a folder in `folder`."""
    for kind, key, entries in (("subject", "name", subjects), ("method", "method", rows)):
        for entry in entries:
            name = entry.get(key) if isinstance(entry, dict) else None
            if not isinstance(name, str):
                raise UserError(f"{folder}: a {kind} has no name; run {WRITER} again")
            check_file_name(f"{folder}: {kind}", name, f"run {WRITER} again")

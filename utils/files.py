"""Files that are whole or not there: atomic writes, JSON, and JSON lines that a killed run left torn."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from utils.errors import UserError


def write_text(path: Path, text: str) -> None:
    """An older file is replaced in one piece or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises UserError for a file that is no JSON, which this program does not write."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); remove it, it will be made again") from error


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; none if there is no file.

    A last line that a killed run left unfinished is cut off, in the file too, so that lines can be appended.
    """
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
    try:
        return [json.loads(line) for line in content[:whole].splitlines()]
    except ValueError as error:
        raise UserError(f"{path} is not JSON lines ({error}); remove it, it will be made again") from error


def append_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """All of them in one write, on the disk when this returns."""
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        file.write(lines.encode())
        os.fsync(file.fileno())

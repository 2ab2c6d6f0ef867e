"""The concepts to learn, as the flags or a JSON list describe them."""

import json
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError


@dataclass(frozen=True)
class Concept:
    """One thing to learn: its token, the word the token starts from, its class, its images and their caption.

    subject: how captions name it, "<new1> dog". class_data_dir: None without prior preservation.
    """

    modifier_token: str
    initializer_token: str
    cls_token: str | None
    instance_prompt: str
    instance_data_dir: Path
    class_prompt: str | None = None
    class_data_dir: Path | None = None
    subject: str = ""


def read_concepts_list(path: Path) -> list[dict[str, str]]:
    """A JSON list of objects with text values; UserError otherwise.

    Keys: instance_data_dir, and optionally instance_prompt, class_prompt, class_data_dir.
    """
    required, allowed = {"instance_data_dir"}, {"instance_prompt", "class_prompt", "class_data_dir"}
    try:
        entries = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"--concepts_list {path} does not exist: give a JSON file") from error
    except (OSError, ValueError) as error:
        raise UserError(f"--concepts_list {path} is not readable as JSON ({error})") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(
            f"--concepts_list {path} must hold a list of objects with {', '.join(sorted(required))}"
        )
    for number, entry in enumerate(entries, start=1):
        if missing := required - entry.keys():
            raise UserError(f"{path}: concept {number} lacks {', '.join(sorted(missing))}")
        if unknown := entry.keys() - required - allowed:
            names = ", ".join(sorted(required | allowed))
            raise UserError(
                f"{path}: concept {number} has {', '.join(sorted(unknown))}; only {names} are allowed"
            )
        if not all(isinstance(value, str) for value in entry.values()):
            raise UserError(f"{path}: concept {number} has a value that is not text in quotes")
    return entries

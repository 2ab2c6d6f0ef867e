"""The results folder of an evaluation: written so that a killed run goes on where it was.

results/
  settings.json, subjects.json      the settings of the run
  <method>/<subject>/               concept/, images/, class/, records.jsonl, scores.json
  table.json, table.md, report.html
"""

import json
from pathlib import Path
from typing import Any

from utils.common.errors import UserError
from utils.common.files import read_json

BASE = "base"  # in a method's place: the untouched model, which is given class prompts
PICTURES = "pictures"  # in a results folder: the images that a benchmark draws itself
NOT_COMPARED = frozenset({"hardware"})  # a run may go on elsewhere
MAY_GROW = frozenset({"methods", "train_flags"})  # more methods add to a folder, and change nothing in it


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Raises UserError if `folder` holds a run with other settings, whose images and scores would be mixed
    with this one's, or if it is no folder. Methods may be added."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder} is a file; give a folder")
    path = folder / "settings.json"
    if not path.is_file():
        return
    before, now = read_json(path), json.loads(json.dumps(settings))
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

"""A command's flags from a file: TOML, or the JSON in which a run saved its own.

learning_rate = 1e-5      # every flag by its name, without dashes
hflip = true
cls_token = "dog"
"""

import json
import tomllib
from collections.abc import Collection
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_type_hints

from utils.common.errors import UserError, short
from utils.common.files import one_line, shown

CONFIG_HELP = (
    "flags from a file, each by its name: a .toml, or the training_config.json of a run, which starts the "
    "same run again; flags of the command line win over the file's"
)
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text in quotes"}


def read_flags(config: type, path: Path, ignored: Collection[str] = ()) -> dict[str, Any]:
    """Field -> value, of the dataclass `config`, as the file gives them; the limits are not checked.

    ignored: what a saved configuration records beside its fields. Raises UserError for a file that is missing
    or not TOML (JSON if it ends in .json), an unknown key, and a value of another type than the field's.
    """
    with one_line("read --config", path):
        content = path.read_bytes()
    saved = path.suffix == ".json"
    try:
        values = json.loads(content) if saved else tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        reason = short(error, 120)
        raise UserError(f"--config {shown(path)} is not {'JSON' if saved else 'TOML'} ({reason})") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {shown(path)} holds no flags: write one object of them")
    hints, known = get_type_hints(config), {each.name: each for each in fields(config)}
    flags: dict[str, Any] = {}
    for name, value in values.items():
        if saved and name in ignored:
            continue
        if name not in known:
            _refuse(path, name, list(known))
        if not (saved and value is None and known[name].default is None):
            flags[name] = _value(path, name, value, hints[name])
    return flags


def _refuse(path: Path, name: str, known: list[str]) -> None:
    meant = get_close_matches(name.replace("-", "_"), known, n=1)
    hint = f": did you mean {meant[0]}?" if meant else "; see --help for the flags"
    raise UserError(f"--config {shown(path)}: unknown key '{short(name)}'{hint}")


def _value(path: Path, name: str, value: Any, hint: Any) -> Any:
    """The value in the field's type: a whole number may stand for a number, nothing else for another."""
    kind = next((kind for kind in KINDS if kind is hint or kind in get_args(hint)), None)
    assert kind is not None, f"--{name} of type {hint} cannot be read from a file"
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise UserError(f"--config {shown(path)}: {name} must be {KINDS[kind]}, is {short(repr(value))}")
    return value

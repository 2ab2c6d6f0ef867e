"""A command's flags from a file: TOML, or the JSON in which a run saved its own.

learning_rate = 1e-5      # every flag by its name, without dashes
hflip = true
cls_token = "dog"
"""

import json
import tomllib
from collections.abc import Collection, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

from utils.common.errors import UserError, short
from utils.common.files import one_line, shown

CONFIG_HELP = (
    "flags from a file, each by its name: a .toml, or the training_config.json of a run, which starts the "
    "same run again; flags of the command line win over the file's"
)
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text in quotes"}


def read_flags(config: type, path: Path, ignored: Collection[str] = ()) -> dict[str, Any]:
    """Field -> value, of the dataclass `config`, as the file of --config gives them; limits are not checked.

    ignored: what a saved configuration records besides its fields. Raises UserError as `read_table` and
    `typed_values` do.
    """
    values, saved = read_table("--config", path), is_saved(path)
    nothing = {each.name for each in fields(config) if each.default is None}
    if saved:
        left_out = {name for name in values if name in ignored or values[name] is None and name in nothing}
        values = {name: value for name, value in values.items() if name not in left_out}
    return typed_values(config, values, f"--config {shown(path)}")


def is_saved(path: Path) -> bool:
    """Whether it is a configuration that a run saved, which holds every flag."""
    return path.suffix == ".json"


def read_table(flag: str, path: Path) -> dict[str, Any]:
    """The object of a TOML file, or of a JSON file if it ends in .json.

    Raises UserError, with the flag that gave the file, if it is missing or not in that format.
    """
    with one_line(f"read {flag}", path):
        content = path.read_bytes()
    kind = "JSON" if is_saved(path) else "TOML"
    try:
        values = json.loads(content) if kind == "JSON" else tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{flag} {shown(path)} is not {kind} ({short(error, 120)})") from error
    if not isinstance(values, dict):
        raise UserError(f"{flag} {shown(path)} holds no flags: write one object of them")
    return values


def typed_values(config: type, values: dict[str, Any], where: str) -> dict[str, Any]:
    """The values in the types of the dataclass's fields of these names.

    Raises UserError, beginning with `where`, for an unknown name and a value that is not of its field's type.
    """
    hints = get_type_hints(config)
    known = [each.name for each in fields(config)]
    for name in values:
        if name not in known:
            refuse_key(where, name, known, "see --help for the flags")
    return {name: _value(where, name, value, hints[name]) for name, value in values.items()}


def refuse_key(where: str, name: str, known: Sequence[str], otherwise: str) -> NoReturn:
    """Raise UserError for an unknown key, with the one that was probably meant."""
    meant = get_close_matches(name.replace("-", "_"), known, n=1)
    hint = f": did you mean {meant[0]}?" if meant else f"; {otherwise}"
    raise UserError(f"{where}: unknown key '{short(name)}'{hint}")


def _value(where: str, name: str, value: Any, hint: Any) -> Any:
    """The value in the field's type: a whole number may stand for a number, nothing else for another."""
    kind = next((kind for kind in KINDS if kind is hint or kind in get_args(hint)), None)
    assert kind is not None, f"--{name} of type {hint} cannot be read from a file"
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise UserError(f"{where}: {name} must be {KINDS[kind]}, is {short(repr(value))}")
    return value

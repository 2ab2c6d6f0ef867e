"""The limits of a configuration's fields: types, bounds, choices, and texts that fit in one line.

They hold for flags and for configurations that were read from a file alike.
"""

import math
import os
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from utils.common.errors import UserError, short

MOST = 10**9  # a count beyond it would never end, and a list of as many seeds not fit into memory
LONGEST = 1000  # characters of a text; a text encoder of Stable Diffusion reads 77 tokens
LONGEST_PATH = 4096  # on Linux
LONGEST_NAME = 255  # bytes of a file's or a folder's name
LONGEST_STEM = 200  # bytes of a name that gets a suffix, and what a partial file adds
UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # Unicode's control characters, bytes that are not UTF-8, line breaks
KINDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Path: "a path",
    type(None): "nothing",
}


def check_fields(config: Any) -> None:
    """Raise UserError unless every field of the dataclass instance has its type and is within its limits."""
    hints = get_type_hints(type(config))
    for each in fields(config):
        value = getattr(config, each.name)
        _check_type(each, value, hints[each.name])
        check_limits(each, value)


def check_limits(each: Field, value: Any) -> None:
    """Raise UserError unless `value`, or each item of a tuple, is finite, a choice and within the bounds."""
    if isinstance(value, tuple):
        for item in value:
            check_limits(each, item)
        return
    if value is None or isinstance(value, bool):
        return
    limits, name = each.metadata, shown_name(each)
    if isinstance(value, str | Path):
        longest = limits.get("longest", LONGEST if isinstance(value, str) else LONGEST_PATH)
        check_text(name, str(value), longest, limits.get("blank", False))
    if isinstance(value, Path) and any(len(os.fsencode(part)) > LONGEST_NAME for part in value.parts):
        raise UserError(f"{name} {short(value)}: a name in it has more than {LONGEST_NAME} bytes; shorten it")
    if "choices" in limits and value not in limits["choices"]:
        choices = ", ".join(limits["choices"])
        raise UserError(f"{name} {short(value)} is unknown: choose from {choices}")
    if isinstance(value, int | float):
        _check_number(name, value, limits)


def _check_number(name: str, value: float, limits: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} {value}: give a finite number")
    minimum, above = limits.get("minimum"), limits.get("above")
    most = MOST if isinstance(value, int) else math.inf
    below = limits.get("below", most)
    end = f", below {below}" if "below" in limits or value >= below else ""
    if minimum is not None and not minimum <= value < below:
        raise UserError(f"{name} {short(value)}: give a number of at least {minimum}{end}")
    if above is not None and not above < value < below:
        raise UserError(f"{name} {short(value)}: give a number above {above}{end}")
    if abs(value) >= max(below, most):
        raise UserError(f"{name} {short(value)}: give a number below {below}")


def is_unprintable(text: str) -> bool:
    """Whether it holds a line break, another control character, or bytes that are not UTF-8."""
    return any(unicodedata.category(each) in UNPRINTABLE for each in text)


def check_text(name: str, text: str, longest: int = LONGEST, may_be_blank: bool = False) -> None:
    """Raise UserError, beginning with `name`, for a text that is blank, too long, or more than one line."""
    if len(text) > longest:
        raise UserError(f"{name} '{short(text)}' has {len(text):,} characters: give at most {longest:,}")
    if is_unprintable(text):
        raise UserError(
            f"{name} {ascii(text[:60])} has a line break or another character that cannot be printed: "
            "leave it out"
        )
    if not text.strip() and not may_be_blank:
        raise UserError(f"{name} {text!r} is empty: give a value, or leave it out")


def check_file_name(
    where: str, name: str, advice: str, taken: Collection[str] = (), spaces: bool = True
) -> None:
    """Raise UserError, beginning with `where` and ending with `advice`, unless `name` can name one file.

    The one check of a text that comes from a file and becomes part of a path: without a separator, and a dot
    at its beginning, it stays in its folder. taken: names of other files, in lower case. spaces: whether
    blanks are allowed inside.
    """
    reason = None
    if not name.strip():
        reason = "is empty"
    elif "/" in name or "\\" in name:
        reason = "has a path separator"
    elif name[0] == ".":
        reason = "begins with a dot"
    elif is_unprintable(name):
        reason = "has a line break or another character that cannot be printed"
    elif name != name.strip() or (not spaces and name.split() != [name]):
        reason = "is more than one word" if not spaces else "begins or ends with a blank"
    elif len(name.encode()) > LONGEST_STEM:
        reason = f"has more than {LONGEST_STEM} bytes"
    elif name.lower() in taken:
        reason = "is the name of another file of a concept"
    if reason:
        shown = short(name) if not is_unprintable(name) else ascii(name[:60])[1:-1]
        raise UserError(f"{where} '{shown}' {reason}: {advice}")


def _check_type(each: Field, value: Any, hint: Any) -> None:
    """hint: bool, str, int, float or Path, one of them or None, or a tuple of one of them."""
    allowed: Sequence[Any] = get_args(hint) or (hint,)
    if get_origin(hint) is tuple:
        right = isinstance(value, tuple) and all(_is(item, allowed[:1]) for item in value)
    else:
        right = _is(value, allowed)
    if not right:
        kinds = " or ".join(KINDS[kind] for kind in allowed if kind is not Ellipsis)
        raise UserError(f"{shown_name(each)} {short(repr(value))}: give {kinds}")


def _is(value: Any, kinds: Sequence[Any]) -> bool:
    if type(value) is int and float in kinds:
        return True
    return any(type(value) is kind if kind in (bool, int) else isinstance(value, kind) for kind in kinds)


def shown_name(each: Field) -> str:
    """As a user gives it: a flag, or the name of a value without one."""
    return each.name if each.metadata.get("positional") else f"--{each.name}"

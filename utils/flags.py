"""Command-line flags derived from the fields of a dataclass, with their limits."""

import math
from argparse import SUPPRESS, ArgumentParser
from dataclasses import Field, field, fields
from typing import Any, NoReturn, get_args

from utils.errors import UserError


def option(default: Any, text: str, **limits: Any) -> Any:
    """A field with its help text and limits: choices=…, minimum=… (inclusive), above=…, below=…"""
    return field(default=default, metadata={"help": text, **limits})


def check_limits(each: Field, value: Any) -> None:
    """Raise UserError unless `value` is among the field's choices and within its bounds."""
    limits = each.metadata
    if value is None:
        return
    if "choices" in limits and value not in limits["choices"]:
        raise UserError(f"--{each.name} {value} is unknown: choose from {', '.join(limits['choices'])}")
    minimum, above, below = limits.get("minimum"), limits.get("above"), limits.get("below", math.inf)
    end = f", below {below}" if below < math.inf else ""
    if minimum is not None and not minimum <= value < below:
        raise UserError(f"--{each.name} {value}: give a number of at least {minimum}{end}")
    if above is not None and not above < value < below:
        raise UserError(f"--{each.name} {value}: give a number above {above}{end}")


class _Parser(ArgumentParser):
    """An ArgumentParser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def parser_of(config: type, description: str) -> ArgumentParser:
    """One flag per field of the dataclass `config`; a flag that is not given leaves the field's default."""
    parser = _Parser(description=description, allow_abbrev=False, argument_default=SUPPRESS)
    for each in fields(config):
        text = each.metadata["help"]
        if each.type is bool:
            parser.add_argument(f"--{each.name}", action="store_true", help=text)
            continue
        kind = next((kind for kind in get_args(each.type) if kind is not type(None)), each.type)
        metavar = "|".join(each.metadata["choices"]) if "choices" in each.metadata else kind.__name__
        shown = text if each.default is None else f"{text} (default: {each.default})"
        parser.add_argument(f"--{each.name}", type=kind, metavar=metavar, help=shown)
    return parser

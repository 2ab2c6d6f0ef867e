"""A command's flags are the fields of a frozen dataclass: names, types, help and limits.

    @dataclass(frozen=True)
    class Config:
        prompt: tuple[str, ...] = option((), "repeatable")
        eta: float | None = option(None, "noise per step", minimum=0)
        seed: int = seed_option("seed of every draw")

        def __post_init__(self) -> None:
            check_fields(self)

    config = parse(Config, argv, __doc__)

A field's type is bool, str, int, float or Path, one of them or None, or a tuple of one of them.
A configuration may inherit groups of flags from other dataclasses, whose `heading` then stands above them in
the help.
"""

from argparse import (
    SUPPRESS,
    Action,
    ArgumentParser,
    ArgumentTypeError,
    Namespace,
    RawDescriptionHelpFormatter,
    _ArgumentGroup,
)
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from utils.common.errors import UserError, short
from utils.common.limits import check_fields

Config = TypeVar("Config")
SEEDS = 2**63  # torch's generators take an int64


def option(default: Any, text: str | Callable[[type], str], **facts: Any) -> Any:
    """A field with its help text and what else is known of it.

    text: the help, or a function that gives it for the configuration's class.
    default: dataclasses.MISSING makes a flag that must be given.
    facts: the limits choices=…, minimum=… (inclusive), above=… and below=… (exclusive), longest=… of a text
    and blank=True for one that may be empty, which utils/common/limits.py checks; positional=True for a value
    without a flag's name; several=True for a tuple's flag that takes more than one value at once; any other
    is kept in the field's metadata.
    """
    return field(default=default, metadata={"help": text, **facts})


def seed_option(text: str, default: int = 0, **facts: Any) -> Any:
    """A field for a seed: a whole number from 0 to 2⁶³ - 1."""
    return option(default, text, minimum=0, below=SEEDS, **facts)


def parse(
    config: type[Config],
    argv: Sequence[str] | None,
    description: str,
    replaced: Mapping[str, str] | None = None,
) -> Config:
    """The configuration of a command line, checked; parameters as in `parser_of`."""
    given = config(**vars(parser_of(config, description, replaced).parse_args(argv)))
    check_fields(given)  # also for a configuration that checks nothing else
    return given


def as_argv(config: Any) -> list[str]:
    """The command line, without its subcommand, that gives this configuration; no field may be a tuple."""
    argv = []
    for each in fields(config):
        value = getattr(config, each.name)
        assert not isinstance(value, tuple), each.name
        if value == each.default:
            continue
        if each.metadata.get("positional"):
            argv.insert(0, str(value))
        else:
            argv.append(f"--{each.name}" if value is True else f"--{each.name}={value}")
    return argv


def parser_of(
    config: type,
    description: str,
    replaced: Mapping[str, str] | None = None,
    hidden: Collection[str] = (),
) -> ArgumentParser:
    """One flag per field of the dataclass `config`; a flag that is not given leaves the field's default.

    replaced: flags of other programs, without dashes -> one line on what to use here instead.
    hidden: fields that are not flags here.
    """
    parser = _Parser(
        description=description,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=SUPPRESS,
    )
    parser.replaced = dict(replaced or {})
    hints, sections = get_type_hints(config), {}
    for each in (each for each in fields(config) if each.name not in hidden):
        heading = _heading(config, each.name)
        if heading not in sections:
            sections[heading] = parser.add_argument_group(heading) if heading else parser
        _add(sections[heading], each, hints[each.name], config)
    return parser


def _heading(config: type, name: str) -> str | None:
    """The `heading` of the class that adds the field to `config`, if that class has one."""
    owner = next(
        each for each in reversed(config.__mro__) if name in each.__dict__.get("__annotations__", {})
    )
    return owner.__dict__.get("heading")


def _add(parser: ArgumentParser | _ArgumentGroup, each: Field, hint: Any, config: type) -> None:
    """The argument of one field of `config`."""
    text = each.metadata["help"]
    text = text(config) if callable(text) else text
    if each.default not in (None, (), "", False, MISSING):
        default = " ".join(map(str, each.default)) if isinstance(each.default, tuple) else each.default
        text = f"{text} (default: {default})"
    text = text.replace("%", "%%")
    if hint is bool:
        assert each.default is False, f"--{each.name} could not be switched off"
        parser.add_argument(f"--{each.name}", action="store_true", help=text)
        return
    kind = next((k for k in get_args(hint) if k not in (type(None), Ellipsis)), hint)
    metavar = "|".join(each.metadata["choices"]) if "choices" in each.metadata else kind.__name__.lower()
    settings = {"type": _reader(kind), "metavar": metavar, "help": text}
    if get_origin(hint) is tuple:
        settings["action"] = _Append
        if each.metadata.get("several"):
            settings["nargs"] = "+"
    if not each.metadata.get("positional"):
        parser.add_argument(f"--{each.name}", required=each.default is MISSING, **settings)
        return
    settings["metavar"] = each.name.upper()
    needed, several = each.default is MISSING, get_origin(hint) is tuple
    nargs = ("+" if needed else "*") if several else (None if needed else "?")
    parser.add_argument(each.name, nargs=nargs, default=SUPPRESS, **settings)


class _Append(Action):
    """Collects a repeated flag's values in a tuple."""

    def __call__(self, parser: ArgumentParser, namespace: Namespace, values: Any, flag: Any = None) -> None:
        values = values if isinstance(values, list) else [values]
        setattr(namespace, self.dest, (*getattr(namespace, self.dest, ()), *values))


class _Parser(ArgumentParser):
    """An ArgumentParser whose complaint is one line, with the flag that was probably meant."""

    replaced: dict[str, str]

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; see --help")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Namespace | None = None) -> Namespace:
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self._refuse(next((each for each in unknown if each.startswith("-")), unknown[0]))
        return known

    def _refuse(self, given: str) -> NoReturn:
        name = given.partition("=")[0].lstrip("-")
        if not given.startswith("-"):
            raise UserError(f"'{short(given)}' is not the value of a flag; see --help")
        if name in self.replaced:
            raise UserError(f"--{name} does not exist here: {self.replaced[name]}")
        flags = [action.option_strings[0].lstrip("-") for action in self._actions if action.option_strings]
        meant = get_close_matches(name, flags, n=1) or [each for each in flags if name in each.split("_")][:3]
        hint = f": did you mean {' or '.join(f'--{each}' for each in meant)}? S" if meant else "; s"
        raise UserError(f"unknown flag {short(given)}{hint}ee --help")


def _reader(kind: type) -> Callable[[str], Any]:
    """`kind` as argparse's type, with a message that says what was given."""
    wanted = {int: "a whole number", float: "a number", Path: "a path"}.get(kind)

    def read(text: str) -> Any:
        try:
            if kind is Path and not text:
                raise ValueError
            return kind(text)
        except ValueError:
            raise ArgumentTypeError(f"'{short(text)}' is not {wanted}") from None

    return read if wanted else kind

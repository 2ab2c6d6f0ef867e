"""A program with subcommands, each with flags and help of its own: `python -m scripts.x NAME --flag`."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from utils.common.errors import UserError, short
from utils.common.flags import check_fields, parser_of


@dataclass(frozen=True)
class Subcommand:
    """config: the dataclass of its flags. run: called with them. text: its help, whose first line is also in
    the list of subcommands. hidden: fields of `config` that are not flags of this one."""

    config: type
    run: Callable[[Any], None]
    text: str
    hidden: Collection[str] = ()


def run_subcommand(
    commands: Mapping[str, Subcommand], argv: Sequence[str], description: str, program: str
) -> None:
    """Run the subcommand that a command line names, with its flags; parameters as in `parse_subcommand`."""
    command, config = parse_subcommand(commands, argv, description, program)
    command.run(config)


def parse_subcommand(
    commands: Mapping[str, Subcommand], argv: Sequence[str], description: str, program: str
) -> tuple[Subcommand, Any]:
    """The subcommand that argv[0] names, and its configuration of the flags after it; --help lists them all.

    program: what stands before the subcommand on a command line, for the help. Raises UserError for a missing
    or an unknown subcommand and for wrong flags.
    """
    name = argv[0] if argv else ""
    if name in ("-h", "--help"):
        print(_list(commands, description, program))
        raise SystemExit(0)  # as argparse ends after the help of one
    if name not in commands:
        raise UserError(_refusal(commands, name, program))
    command = commands[name]
    parser = parser_of(command.config, command.text, hidden=command.hidden)
    parser.prog = f"{program} {name}"
    config = command.config(**vars(parser.parse_args(argv[1:])))
    check_fields(config)  # also for a configuration that checks nothing else
    return command, config


def _list(commands: Mapping[str, Subcommand], description: str, program: str) -> str:
    width = max(map(len, commands))
    lines = [f"  {name:{width}}  {command.text.splitlines()[0]}" for name, command in commands.items()]
    usage = f"usage: {program} COMMAND [flags]; {program} COMMAND --help for the flags of one"
    return "\n".join([usage, "", description.strip(), "", "commands:", *lines])


def _refusal(commands: Mapping[str, Subcommand], name: str, program: str) -> str:
    listed = ", ".join(commands)
    if not name or name.startswith("-"):
        given = f"{short(name)} stands where the command belongs" if name else "no command given"
        return f"{given}: {program} COMMAND, where COMMAND is one of {listed}"
    meant = get_close_matches(name, commands, n=1)
    hint = f"did you mean {meant[0]}?" if meant else f"choose one of {listed}"
    return f"unknown command '{short(name)}': {hint}"

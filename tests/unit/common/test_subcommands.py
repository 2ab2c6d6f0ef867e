"""A program with subcommands: the list of them, the help of one, and mistakes in one line."""

from dataclasses import dataclass

import pytest

from utils.common.errors import UserError
from utils.common.flags import option
from utils.common.subcommands import Subcommand, run_subcommand


@dataclass(frozen=True)
class Flags:
    steps: int = option(3, "how many", minimum=1)


@dataclass(frozen=True)
class Other:
    name: str = option("a", "a name")


def run(*argv: str) -> list[object]:
    """What the subcommands were called with."""
    seen: list[object] = []
    commands = {
        "train": Subcommand(Flags, seen.append, "train it\n\nand more of that"),
        "plot": Subcommand(Other, lambda config: seen.append(("plot", config)), "plot it"),
    }
    run_subcommand(commands, argv, "Two things.", "python -m thing")
    return seen


def test_the_named_one_runs_with_its_own_flags():
    assert run("train", "--steps=5") == [Flags(5)]
    assert run("plot") == [("plot", Other("a"))]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no command given: python -m thing COMMAND, where COMMAND is one of train, plot"),
        (
            ["--steps=3"],
            "--steps=3 stands where the command belongs: python -m thing COMMAND, where COMMAND is one of "
            "train, plot",
        ),
        (["trian"], "unknown command 'trian': did you mean train?"),
        (["x"], "unknown command 'x': choose one of train, plot"),
        (["plot", "--steps=3"], "unknown flag --steps=3; see --help"),
        (["train", "--steps=0"], "--steps 0: give a number of at least 1"),
    ],
)
def test_a_mistake_is_one_line(argv, message):
    with pytest.raises(UserError) as mistake:
        run(*argv)
    assert str(mistake.value) == message


def test_help_lists_the_commands_and_of_one_its_flags(capsys):
    with pytest.raises(SystemExit, match="0"):
        run("--help")
    shown = capsys.readouterr().out
    assert "Two things." in shown and "  train  train it\n  plot   plot it\n" in shown
    with pytest.raises(SystemExit, match="0"):
        run("train", "--help")
    shown = capsys.readouterr().out
    assert shown.startswith("usage: python -m thing train ") and "and more of that" in shown
    assert "how many (default: 3)" in shown

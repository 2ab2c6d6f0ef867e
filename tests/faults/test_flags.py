"""Every flag of every command with junk: one line on stderr, exit 2, nothing written, no model loaded."""

import importlib
import os
import shutil
import traceback
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from tests.faults.commands import Command, as_nobody, call, content_of, no_models
from tests.faults.programs import COMMANDS, REPOSITORY
from tests.faults.shim import survived, tried

LONG = "9" * 10_000
NUMBERS = {
    "word": "many",
    "nan": "nan",
    "infinite": "inf",
    "overflow": "1e999",
    "negative": "-1",
    "empty": "",
    "two lines": "1\n2",
    "list": "[1]",
    "10 kB": LONG,
}
COUNTS = NUMBERS | {"fraction": "1.5", "2**64": str(2**64)}
TEXTS = {
    "empty": "",
    "blank": " \n",
    "two lines": "a\nb",
    "900 characters": "x" * 900,
    "10 kB": "x" * 10_000,
    "not UTF-8": os.fsdecode(b"\xff\xfe"),
    "control": "\x1b[31m",
}
PATHS = {
    "empty": "",
    "missing": "missing/thing",
    "two lines": "a\nb",
    "name of 3 kB": "x" * 3000,
    "10 kB": "x/" * 5000,
    "not UTF-8": os.fsdecode(b"\xff\xfe"),
    "file": "junk.bin",
    "file as a folder": "junk.bin/inside",
    "folder": "empty",
    "unreadable file": "unreadable.txt",
    "unreadable folder": "unreadable",
}


# What looks like junk but is not: (flag, what is wrong). Output folders are made.
LEGAL = {
    ("evaluate, generated", "modifier_token", "900 characters"),
    *(("evaluate, generated", "base", wrong) for wrong in ("missing", "file as a folder")),  # Hub ids
    *(
        (flag, wrong)
        for flag in ("output_dir", "output", "class_data_dir", "work_dir")
        for wrong in ("missing", "folder")
    ),
    ("negative_prompt", "empty"),
    ("validation_prompt", "empty"),
    ("benchmark, train", "json", "missing"),
    *((flag, "900 characters") for flag in "revision variant cls_token class_prompt tracker_name".split()),
    *((flag, "900 characters") for flag in "prompt negative_prompt validation_prompt subject".split()),
}

# Texts that name a file, a folder or a model.
PLACES = frozenset(
    "pretrained_model_name_or_path instance_data_dir class_data_dir concepts_list output_dir base model clip "
    "dino blip motion_adapter captions resume_from_checkpoint data_dir".split()
)


def junk_for(name: str, hint: Any) -> dict[str, str]:
    """What is wrong with the value -> the value, for a flag of this type."""
    kinds = [hint, *get_args(hint)] if get_origin(hint) in (UnionType, tuple) else [hint]
    if bool in kinds:
        return {"a value": "yes"}
    if int in kinds:
        return COUNTS
    if float in kinds:
        return NUMBERS
    if Path in kinds:
        return PATHS
    return TEXTS | PATHS if name in PLACES else TEXTS


def with_junk(command: Command, name: str, value: str) -> list[str]:
    """The command line that works, with this value for the flag, or in the place of the positional one."""
    positional = [each.name for each in command.flags if each.metadata.get("positional")]
    if name not in positional:
        return [*command.works, f"--{name}={value}"]
    argv, at = list(command.works), positional.index(name)
    places = [number for number, each in enumerate(argv) if not each.startswith("--")]
    argv[places[at]] = value
    return argv


def trials(command: Command) -> Iterator[tuple[str, str, list[str]]]:
    """(flag, what is wrong, command line)."""
    module = importlib.import_module(command.module)
    hints = get_type_hints(getattr(module, command.config))
    for each in command.flags:
        for wrong, value in junk_for(each.name, hints[each.name]).items():
            yield each.name, wrong, with_junk(command, each.name, value)


def test_every_command_is_walked():
    files = [
        *REPOSITORY.glob("*.py"),
        *REPOSITORY.glob("scripts/*.py"),
        *REPOSITORY.glob("scripts/toon/*.py"),
    ]
    programs = [path for path in files if "exit_on_user_error(main)" in path.read_text()]
    modules = {".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in programs}
    # The page has flags of its own checks (tests/unit/app), and needs gradio.
    assert {command.module for command in COMMANDS.values()} == modules - {"scripts.app"}
    for module in modules - {"scripts.app"}:
        subcommands = set(getattr(importlib.import_module(module), "SUBCOMMANDS", {}))
        walked = {command.subcommand for command in COMMANDS.values() if command.module == module}
        assert walked == (subcommands - {"all"} or {None}), module  # `all` runs the others


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_works_without_junk(name: str, there: Path):
    """Else the refusals below would prove nothing."""
    with no_models():
        end = call(COMMANDS[name].main, list(COMMANDS[name].works))
    shutil.rmtree("out", ignore_errors=True)
    assert end.code in (None, 0), end


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.faults)])
@pytest.mark.parametrize("name", COMMANDS)
def test_junk_is_refused_in_one_line(name: str, every: int, there: Path):
    """every: that many trials apart are those of a run without --faults; 7 is no divisor of a type's junk."""
    command, wrong_ends = COMMANDS[name], []
    before = content_of(there)
    for flag, wrong, argv in islice(trials(command), 0, None, every):
        tried(f"flags: {name}")
        try:
            with no_models(), as_nobody() if wrong.startswith("unreadable") else nullcontext():
                end = call(command.main, argv)
        except Exception:
            wrong_ends.append(f"--{flag} [{wrong}] {traceback.format_exc().splitlines()[-1][:200]}")
            continue
        legal = {(flag, wrong), (name, flag, wrong)} & LEGAL and end.code in (0, None)
        after = content_of(there)
        if end.refused == legal or (after != before and not legal):
            wrong_ends.append(f"--{flag} [{wrong}] {end.code} {end.stderr[:200]!r} {end.stdout[-60:]!r}")
        else:
            survived(f"flags: {name}")
        if after != before:
            for path in map(Path, sorted(set(after) - set(before), reverse=True)):
                path.rmdir() if path.is_dir() else path.unlink()
    assert not wrong_ends, "\n".join(wrong_ends)

"""Whole programs in forked processes, killed at file operations spread over them, then run to the end."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.shim import Ending, Fault, in_child, survived, tried

Program = Callable[[Path], object]  # gets the folder that it writes to
CONFIGURATIONS = ("training_config.json", "settings.json")  # which hold the folder's own name


def whole_run(program: Program, folder: Path) -> Path:
    """The folder of a run without faults."""
    ending = in_child(lambda: program(folder))
    assert ending.code == 0, ending.message
    return folder


def operations(kind: str, program: Program, folder: Path, root: str = "") -> int:
    """How many operations of a run could be the one at which a fault of this kind strikes."""
    ending = in_child(lambda: program(folder), Fault(kind, 1_000_000, str(folder / root)))
    assert ending.code == 0, ending.message
    return ending.operations


def spread(total: int, points: int) -> list[int]:
    """`points` numbers, or all, from 1 to total, the first and the last among them."""
    points = min(points, total)
    return sorted({round(1 + i * (total - 1) / max(1, points - 1)) for i in range(points)})


def killed_runs(
    kind: str, program: Program, work: Path, points: int, name: str, root: str = ""
) -> Iterator[Path]:
    """The folders of runs that were killed at `points` operations in `root`, then once more, then went on.

    name: of the table's row. The second kill is anywhere. A try survives when the caller's checks pass.
    """
    total = operations(kind, program, work / f"{kind}-counted", root)
    draws = random.Random(name)
    for number in spread(total, points):
        folder = work / f"{kind}-{number}"
        tried(name)
        assert strike(kind, number, program, folder, root).killed
        strike(kind, draws.randint(1, total), program, folder, root)
        yield whole_run(program, folder)
        survived(name)


def strike(kind: str, number: int, program: Program, folder: Path, root: str) -> Ending:
    """A run with the fault at this operation; one that ended before it is fine."""
    ending = in_child(lambda: program(folder), Fault(kind, number, str(folder / root)))
    assert ending.killed or ending.code == 0, ending.message
    return ending


def contents(folder: Path) -> dict[str, bytes]:
    """Relative path -> bytes of all files that count, with the folder's own name left out of configurations.

    Left out are hidden files, a checkpoint's manifest (which has the digests of configurations) and pages.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not hidden and path.name not in ("manifest.json", "report.html", "train.txt"):
            content = path.read_bytes()
            if path.name in CONFIGURATIONS:
                content = content.replace(str(folder).encode(), b"FOLDER")
            files[str(relative)] = content
    return files


def differences(one: Path, other: Path) -> list[str]:
    """The files that are not the same, bit for bit, in two folders."""
    ours, theirs = contents(one), contents(other)
    return [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]

"""Whole programs in forked processes, killed at file operations spread over them, then run to the end."""

import importlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tests.faults.shim import Ending, Fault, in_child, survived, tried
from utils.training.checkpoints import why_broken

Program = Callable[[Path], object]  # gets the folder that it writes to
CONFIGURATIONS = ("training_config.json", "settings.json")  # which hold the folder's own name


def imports(*names: str) -> None:
    """Imports what programs import when they run: once here, else again in each forked process."""
    for name in names:
        importlib.import_module(name)


def whole_run(program: Program, folder: Path, kind: str = "kill", root: str = "") -> int:
    """A run without faults; at how many of its operations in `root` a fault of this kind could strike."""
    ending = in_child(lambda: program(folder), Fault(kind, 1_000_000, str(folder / root)))
    assert ending.code == 0, ending.message
    return ending.operations


def spread(total: int, points: int) -> list[int]:
    """`points` numbers, or all, evenly over 1 to total; of one the middle."""
    return sorted({round(0.5 + total * (i + 0.5) / points) for i in range(points)})


def survive_kills(
    kind: str, program: Program, work: Path, points: int, name: str, root: str = "", once: bool = False
) -> int:
    """Runs in `work` are killed at `points` operations in `root` and go on: they end as one without faults.

    name: of the table's row. once: else they are killed a second time, anywhere, before they end. Returns how
    many were killed; work/whole is the run without faults.
    """
    total = whole_run(program, work / "whole", kind, root)
    draws, numbers = random.Random(name), spread(total, points)
    for number in numbers:
        folder = work / f"{kind}-{number}"
        tried(name)
        assert strike(kind, number, program, folder, root).killed
        if not once:
            strike(kind, draws.randint(1, total), program, folder, root)
        whole_run(program, folder)
        assert differences(folder, work / "whole") == []
        broken = {path: why_broken(path) for path in folder.rglob("checkpoint-*")}
        assert not any(broken.values()), broken
        shutil.rmtree(folder)
        survived(name)
    return len(numbers)


def strike(kind: str, number: int, program: Program, folder: Path, root: str) -> Ending:
    """A run with the fault at this operation; one that ended before it is fine."""
    ending = in_child(lambda: program(folder), Fault(kind, number, str(folder / root)))
    assert ending.killed or ending.code == 0, ending.message
    return ending


def contents(folder: Path) -> dict[str, bytes]:
    """Relative path -> bytes of all files that count, without the folder's own name in configurations and in
    what images say of themselves; of a pickle the values, for a resumed run's refers to equal ones otherwise.

    Left out are hidden files, a checkpoint's manifest (which has the digests of configurations) and pages.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not hidden and path.name not in ("manifest.json", "report.html", "train.txt"):
            content, name = path.read_bytes(), str(folder).encode()
            if path.suffix == ".png":
                with Image.open(path) as image:
                    content = image.tobytes() + repr(sorted(image.info.items())).encode()
            if path.name in CONFIGURATIONS or path.suffix == ".png":
                content = content.replace(name, b"FOLDER")
            if path.suffix == ".pt":
                content = repr(plain(torch.load(path, weights_only=True))).encode()
            files[str(relative)] = content
    return files


def plain(value: Any) -> Any:
    """The value with lists for its tensors."""
    if isinstance(value, torch.Tensor):
        return [str(value.dtype), value.tolist()]
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def differences(one: Path, other: Path) -> list[str]:
    """The files that are not the same, bit for bit, in two folders."""
    ours, theirs = contents(one), contents(other)
    return [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]

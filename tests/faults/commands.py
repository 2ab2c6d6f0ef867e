"""Every command, called in this process: its flags, a command line that works, and how it ends."""

import importlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from utils.common.errors import exit_on_user_error


class ModelLoads(BaseException):
    """All checks passed: a model would be loaded now."""


@dataclass(frozen=True)
class Command:
    """module: has `main(argv)`. config: the name of the dataclass of its flags. works: arguments that pass
    every check, without the flags that are being tried. subcommand: what stands before them, if anything.
    """

    module: str
    config: str
    works: tuple[str, ...]
    subcommand: str | None = None

    @property
    def flags(self) -> list[Any]:
        """The fields behind the flags."""
        module = importlib.import_module(self.module)
        hidden = module.SUBCOMMANDS[self.subcommand].hidden if self.subcommand else ()
        return [each for each in fields(getattr(module, self.config)) if each.name not in hidden]

    @property
    def main(self) -> Callable[[list[str]], None]:
        main = importlib.import_module(self.module).main
        return main if self.subcommand is None else lambda argv: main([self.subcommand, *argv])


@dataclass(frozen=True)
class End:
    """code: of the exit, 0 for an end without a mistake, None when a model would be loaded."""

    code: int | None
    stdout: str
    stderr: str

    @property
    def refused(self) -> bool:
        """Whether it is one line on stderr with exit 2."""
        lines = self.stderr.splitlines()
        return self.code == 2 and len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) < 700


def call(main: Callable[[list[str]], None], argv: list[str]) -> End:
    """main(argv) as the command line runs it. Anything but an exit or ModelLoads is raised."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            exit_on_user_error(lambda: main(argv))
            code: int | None = 0
        except SystemExit as end:
            code = end.code
        except ModelLoads:
            code = None
    return End(code, out.getvalue(), err.getvalue())


@contextmanager
def no_models() -> Iterator[None]:
    """Whatever loads the weights of a model raises ModelLoads."""
    import diffusers
    import transformers

    def loads(*_: Any, **__: Any) -> None:
        raise ModelLoads

    with pytest.MonkeyPatch.context() as patch:
        for owner in (diffusers.DiffusionPipeline, diffusers.ModelMixin, transformers.PreTrainedModel):
            patch.setattr(owner, "from_pretrained", loads)
        patch.setattr("scripts.toon.models.training.write_json", loads)  # what a toon training begins with
        yield


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's right to read and write what the modes forbid."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def content_of(folder: Path) -> dict[str, tuple[int, int]]:
    """path -> size and time of all that is in a folder."""
    stats = {path: path.lstat() for path in sorted(folder.rglob("*"))}
    return {
        str(path): (0, 0) if path.is_dir() else (stat.st_size, stat.st_mtime_ns)
        for path, stat in stats.items()
    }

"""Every program that writes, on machines that let it down: it ends well, or by one line at the end of stderr.

Disks that are full, read-only, failing or gone from some operation on; streams that are closed, full or of an
old locale; little memory; links in the place of folders. Afterwards the same command ends well, with the same
files.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.kills import imports, spread
from tests.faults.programs import COMMANDS
from tests.faults.shim import Fault, is_one_line, printed_by, survived, tried
from tests.faults.test_endings import limited


@dataclass(frozen=True)
class Program:
    """A command of COMMANDS and more flags; it writes to the folder that OUT stands for in them."""

    command: str
    more: tuple[str, ...] = ()

    def main(self, out: Path) -> Callable[[], Any]:
        command = COMMANDS[self.command]
        argv = [*command.works, *self.more]
        if self.command == "report":
            argv = [str(out)]
        argv = [str(out) if arg == "out" else arg.replace("=out", f"={out}") for arg in argv]
        return lambda: command.main(argv)


TRAINED = ("--max_train_steps=3", "--checkpointing_steps=1", "--resume_from_checkpoint=latest")
DRAWN = ("--num_inference_steps=1", "--prompt=a <new1> dog", "--output_dir=out")
PROGRAMS = {
    "train": Program("train", TRAINED),
    "train with class images": Program("train, prior", (*TRAINED, "--num_class_images=2")),
    "inference": Program("inference", (*DRAWN, "--num_images=2")),
    "videogen": Program("videogen", (*DRAWN, "--num_frames=2", "--format=webp")),
    "evaluate a concept": Program(
        "evaluate, concept", ("--num_images=1", "--max_prompts=1", "--num_class_images=2")
    ),
    "evaluate images": Program("evaluate, generated"),
    "report": Program("report"),
    **{
        f"export {layout}": Program("export", (f"--format={layout}",))
        for layout in ("lora", "diff", "diffusers", "official")
    },
    "semantic_space": Program("semantic_space"),
    "attention_maps": Program("attention_maps", ("--num_images=1",)),
    "draw toon's scenes": Program("toon masked_scenes"),
}
FAST = ("export lora",)  # the others run with --faults
ALL = pytest.mark.faults
NAMES = [name if name in FAST else pytest.param(name, marks=ALL) for name in PROGRAMS]


def some(kinds: Iterable[str], *fast: str) -> list[Any]:
    return [kind if kind in fast else pytest.param(kind, marks=ALL) for kind in kinds]


@pytest.fixture(autouse=True)
def libraries() -> None:
    """Imported once, else again in each forked process."""
    imports("utils.training.outputs", "utils.training.run", "diffusers.optimization", "utils.sampling.images")
    imports("utils.evaluation.evaluation", "utils.report.page", "utils.concepts.export")


@pytest.fixture
def folders(there: Path, tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """folders(program): a new place for its output, which is not there; the report's is a results folder."""
    count = 0

    def fresh(name: str) -> Path:
        nonlocal count
        count += 1
        out = tmp_path / str(count) / "out"
        out.parent.mkdir()
        if name == "report":
            shutil.copytree(there / "results", out)
        return out

    yield fresh


def files(folder: Path) -> list[str]:
    """Relative paths of all files that count."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in paths if not any(part[0] == "." for part in path.parts))


def install(fault: Fault) -> None:
    os.fsync = fault.fsync
    sys.addaudithook(fault.hook)


def operations(name: str, out: Path) -> int:
    """How many of them a run has in its folder."""
    fault, noted = Fault("EIO", 10**6, str(out)), out.with_name("count")
    main = PROGRAMS[name].main(out)

    def counting() -> None:
        main()
        noted.write_text(str(fault.count))

    code, lines = printed_by(counting, lambda: install(fault))
    assert code == 0, lines
    return int(noted.read_text())


KINDS = {
    "full": "is full",
    "shut": "is read-only",
    "EIO": "fails once",
    "EACCES": "refuses once",
    "gone": "is gone",
}


@pytest.mark.parametrize("kind", some(KINDS, "full", "gone"))
@pytest.mark.parametrize("name", NAMES)
def test_a_disk_lets_it_down(name: str, kind: str, folders: Callable[[str], Path]):
    whole, wrong, row = folders(name), [], f"every program: disk {KINDS[kind]}"
    for number in spread(operations(name, whole), 2):
        out = folders(name)
        tried(row)
        code, lines = printed_by(
            PROGRAMS[name].main(out), lambda o=out, n=number: install(Fault(kind, n, str(o)))
        )
        if code != 0 and not is_one_line(code, lines):
            wrong.append(f"operation {number}: {code} {lines[-3:]}")
            continue
        if kind != "gone" and code != 0:
            again, lines = printed_by(PROGRAMS[name].main(out))
            if again != 0 or files(out) != files(whole):
                wrong.append(f"operation {number}, then: {again} {lines[-1:]} {files(out)}")
                continue
        survived(row)
    assert not wrong, "\n".join(wrong)


def close_streams() -> None:
    os.close(1)
    os.close(2)
    sys.stdout = sys.stderr = None


def fill_stdout() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def old_locale() -> None:
    sys.stdout.reconfigure(encoding="ascii", errors="strict")
    sys.stderr.reconfigure(encoding="ascii", errors="backslashreplace")


STREAMS = {"closed": close_streams, "full": fill_stdout, "of an old locale": old_locale}


@pytest.mark.parametrize("kind", some(STREAMS, "closed"))
@pytest.mark.parametrize("name", NAMES)
def test_streams_let_it_down(name: str, kind: str, folders: Callable[[str], Path]):
    """What was written to files is there, and nothing else in them."""
    whole, out = folders(name), folders(name)
    assert printed_by(PROGRAMS[name].main(whole))[0] == 0
    tried(f"every program: streams {kind}")
    code, lines = printed_by(PROGRAMS[name].main(out), STREAMS[kind])
    if kind == "full":
        assert code == 0 or is_one_line(code, lines), lines
        assert code == 0 or "No space left on device; make room" in lines[-1]
    else:
        assert code == 0, lines
        assert files(out) == files(whole)
    survived(f"every program: streams {kind}")


@pytest.mark.parametrize("megabytes", [2, pytest.param(24, marks=ALL), pytest.param(120, marks=ALL)])
@pytest.mark.parametrize("name", NAMES)
def test_memory_lets_it_down(name: str, megabytes: int, folders: Callable[[str], Path]):
    out = folders(name)
    tried("every program: small memory")
    code, lines = printed_by(PROGRAMS[name].main(out), lambda: limited(megabytes))
    assert code == 0 or (is_one_line(code, lines) and "error: out of memory" in lines[-1]), lines[-8:]
    survived("every program: small memory")


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_elsewhere(name: str, folders: Callable[[str], Path]):
    """A link to a folder is written through; one to nothing, or to a file, is refused and stays."""
    whole, real, linked = folders(name), folders(name), folders(name)
    assert printed_by(PROGRAMS[name].main(whole))[0] == 0
    real.mkdir(exist_ok=True)
    shutil.rmtree(linked, ignore_errors=True)
    linked.symlink_to(real)
    tried("every program: links")
    code, lines = printed_by(PROGRAMS[name].main(linked))
    assert code == 0, lines
    assert linked.is_symlink() and files(real) == files(whole)
    (real.parent / "file").touch()
    for target in ("nothing", "file"):
        place = real.parent / f"link to {target}"
        place.symlink_to(real.parent / target)
        code, lines = printed_by(PROGRAMS[name].main(place))
        assert is_one_line(code, lines) and place.is_symlink(), lines
    assert not (real.parent / "nothing").exists() and (real.parent / "file").stat().st_size == 0
    survived("every program: links")

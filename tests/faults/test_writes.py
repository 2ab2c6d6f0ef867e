"""Every write of the building blocks under every fault at every file operation: old or new, no mixture."""

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.faults.shim import Ending, each_operation, in_child, survived, tried
from tests.faults.writes import WRITES, Write, drawn
from utils.common.errors import UserError
from utils.common.files import write_json

LEFT = {".run.lock"}  # hidden files that stay


@pytest.fixture(autouse=True)
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.sampling.images.sample", drawn)


@pytest.fixture
def work_dir(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a folder: thousands of fsyncs to a disk take minutes."""
    if os.access("/dev/shm", os.W_OK):
        with TemporaryDirectory(dir="/dev/shm") as folder:
            yield Path(folder)
    else:
        yield tmp_path


@pytest.fixture
def fresh(work_dir: Path) -> Callable[[Write], Callable[[int], Path]]:
    """fresh(write)(number): a new copy of the folder with the old content."""

    def folders(write: Write) -> Callable[[int], Path]:
        template = work_dir / "template"
        template.mkdir()
        write.before(template)
        return lambda number: Path(shutil.copytree(template, work_dir / str(number)))

    return folders


def judge(fault: str, write: Write, folder: Path, ending: Ending) -> None:
    """The content is old or new, errors are one line, and the write can be done again."""
    tried(fault)
    assert ending.code in (-1, 0, 2), ending.message
    assert (ending.code == 2) == bool(ending.message) and "\n" not in ending.message
    content = write.read(folder)
    assert content in (write.old, write.new, *write.between), content
    if ending.code == 0:
        assert content == write.new
    write.act(folder)
    assert write.read(folder) == write.new
    partial = [
        path for path in folder.rglob(".*") if path.name not in LEFT and not path.name.endswith(".tmp")
    ]
    assert partial == []
    shutil.rmtree(folder)
    survived(fault)


# Kept for every run of the tests; the others run with --faults.
FAST = {
    ("kill", "checkpoint"),
    ("kill", "concept folder"),
    ("tear", "checkpoint"),
    ("full", "concept folder"),
}


def cases(*kinds: str) -> list:
    return [
        pytest.param(kind, name, marks=() if (kind, name) in FAST else pytest.mark.faults)
        for kind in kinds
        for name in WRITES
        if (kind, name) not in (("tear", "lock"), ("tear", "records"))  # which sync nothing that can tear
    ]


@pytest.mark.parametrize(("kind", "name"), cases("kill", "tear"))
def test_a_kill_at_every_operation(kind: str, name: str, fresh: Callable):
    write, count = WRITES[name], 0
    for folder, ending in each_operation(kind, fresh(write), write.act):
        assert ending.killed
        judge(f"{kind}: {name}", write, folder, ending)
        count += 1
    assert count >= 1


@pytest.mark.parametrize(("kind", "name"), cases("ENOSPC", "EIO", "EACCES", "full", "shut"))
def test_a_failure_at_every_operation(kind: str, name: str, fresh: Callable):
    write, count = WRITES[name], 0
    for folder, ending in each_operation(kind, fresh(write), write.act):
        if kind in ("ENOSPC", "full") and ending.code == 2:
            assert "No space left on device" in ending.message, ending.message
        judge(f"{kind}: {name}", write, folder, ending)
        count += 1
    assert count >= 1


@pytest.mark.parametrize("name", [name for name in WRITES if name not in ("lock", "class images")])
def test_a_limit_on_the_size_of_files(name: str, fresh: Callable):
    """RLIMIT_FSIZE stops writes in the middle, those of native code too."""
    write, prepare = WRITES[name], fresh(WRITES[name])
    for limit in (0, 1, 100, 1000, 20_000):
        folder = prepare(limit)

        def act(folder: Path = folder, limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            write.act(folder)

        ending = in_child(act)
        assert ending.code == 0 or "File too large; the file is larger than" in ending.message, ending
        judge(f"file size limit: {name}", write, folder, ending)


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 256 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("name", [name for name in WRITES if name != "lock"])
def test_a_disk_that_is_really_full(name: str, small_disk: Path):
    write, refused = WRITES[name], 0
    for pages in range(0, 28, 3):  # of 4 KB that are left
        folder = small_disk / str(pages)
        folder.mkdir()
        write.before(folder)
        ballast = small_disk / "ballast"
        free = shutil.disk_usage(small_disk).free
        ballast.write_bytes(bytes(max(0, free - 4096 * pages)))
        ending = in_child(lambda folder=folder: write.act(folder))
        assert ending.code == 0 or "No space left on device; make room" in ending.message, ending
        refused += ending.code == 2
        ballast.unlink()
        judge(f"full disk: {name}", write, folder, ending)
    assert refused >= 1


def test_the_shim_sees_the_operations(tmp_path: Path):
    """Each step of one atomic write: the faults below would prove nothing if the hook saw less."""
    (tmp_path / "0").mkdir()
    endings = [
        ending
        for _, ending in each_operation(
            "EIO", lambda n: tmp_path / "0", lambda folder: write_json(folder / "x", json.loads("1"))
        )
    ]
    # touch, open to write, chmod, open to sync, fsync, replace
    assert [ending.code for ending in endings].count(2) >= 6


def test_the_error_is_a_users(tmp_path: Path):
    ending = in_child(lambda: (_ for _ in ()).throw(UserError("one line")))
    assert (ending.code, ending.message, ending.killed) == (2, "one line", False)

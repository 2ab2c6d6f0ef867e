"""Every write of the building blocks under every fault at every file operation: old or new, no mixture."""

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import utils.training.prior
from tests.faults.shim import Ending, each_operation, in_child, survived, tried
from utils.bases.registry import Sampling
from utils.errors import UserError
from utils.files import append_records, read_json, read_records, write_json, write_text
from utils.folders import files_of, replace_folder
from utils.images import is_image, open_image
from utils.tensor_files import read_tensors, write_tensors
from utils.training.checkpoints import find_checkpoint, new_checkpoint, remove_old_checkpoints
from utils.training.config import TrainConfig
from utils.training.dataset import Concept
from utils.training.lock import RunLock
from utils.training.logger import Logger
from utils.training.prior import generate_class_images
from utils.training.state import load_state, save_state


class Run:
    """A training run of one parameter of 3000 numbers, which are all equal to the step."""

    def __init__(self, step: int = 0):
        self.trained = {"rows": nn.Parameter(torch.zeros(3, 1000))}
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=0.1)
        self.scheduler = torch.optim.lr_scheduler.ConstantLR(self.optimizer)
        self.trained["rows"].sum().backward()
        self.optimizer.step()  # makes the moments
        with torch.no_grad():
            self.trained["rows"].fill_(step)

    def save(self, output_dir: Path, step: int) -> None:
        with new_checkpoint(output_dir, step) as folder:
            replace_folder(folder, lambda staging: write_tensors(staging / "kv.safetensors", self.trained))
            write_json(folder / "training_config.json", {"seed": 0})
            save_state(folder, step, self.trained, self.optimizer, self.scheduler, None, 1, self.trained)

    def load(self, output_dir: Path) -> float:
        """The value that the run goes on with from 'latest'."""
        checkpoint, _ = find_checkpoint("latest", output_dir)
        tensors = read_tensors(files_of(checkpoint)["kv.safetensors"])
        load_state(checkpoint, tensors, self.trained, self.optimizer, self.scheduler, None, 1)
        (value,) = set(self.trained["rows"].flatten().tolist())
        return value


@dataclass(frozen=True)
class Write:
    """before: makes the old content. act: replaces it. read: the content as a reader sees it."""

    before: Callable[[Path], Any]
    act: Callable[[Path], Any]
    read: Callable[[Path], Any]
    old: Any
    new: Any
    between: tuple[Any, ...] = ()  # whole contents on the way


def save_next(folder: Path) -> None:
    Run(2).save(folder, 2)
    remove_old_checkpoints(folder, 2, keep=1)


def concept(text: str) -> Callable[[Path], None]:
    def write(staging: Path) -> None:
        for name in ("concept.json", "kv", f"row-{text}"):
            write_text(staging / name, text)

    return write


def concept_before(folder: Path) -> None:
    replace_folder(folder, concept("old"))
    (folder / "checkpoint-1").mkdir()
    write_text(folder / "checkpoint-1" / "state", "state")
    write_text(folder / "log.jsonl", "log")


def read_concept(folder: Path) -> dict[str, str]:
    assert (folder / "checkpoint-1" / "state").read_text() == "state"
    return {name: path.read_text() for name, path in files_of(folder).items()}


def draw(pipeline, prompts, seeds, *_, **__):
    return (Image.new("RGB", (8, 8), (n, 0, 0)) for n in range(len(prompts)))


def draw_class_images(folder: Path) -> None:
    dogs = Concept("<new1>", "ktn", "dog", "a photo of a <new1> dog", Path("dog"), "a dog", folder / "dogs")
    generate_class_images(None, [dogs], Sampling(), count=3, batch_size=3, seed=0)


def read_images(folder: Path) -> int:
    images = [path for path in (folder / "dogs").glob("*") if is_image(path)]
    assert all(open_image(path).size == (8, 8) for path in images)
    return len(images)


CONFIG = TrainConfig(instance_data_dir="dog", instance_prompt="a <new1> dog", cls_token="dog")


def write_log(folder: Path) -> None:
    logger = Logger(folder, CONFIG, resumed_at=2)
    for step in (3, 4):
        logger.log(step, {"loss": 0.5})


def log_until(step: int) -> list[dict]:
    return [{"step": number, "loss": 0.5} for number in range(1, step + 1)]


def row(n: int, text: str) -> dict[str, str]:
    return {"concept.json": text, "kv": text, f"row-{text}": text, "log.jsonl": "log"}


def lock(folder: Path) -> None:
    with RunLock(folder):
        pass


WRITES = {
    "checkpoint": Write(lambda f: Run(1).save(f, 1), save_next, lambda f: Run().load(f), 1, 2),
    "checkpoint of the same step": Write(
        lambda f: Run(1).save(f, 5), lambda f: Run(2).save(f, 5), lambda f: Run().load(f), 1, 2
    ),
    "concept folder": Write(
        concept_before,
        lambda f: replace_folder(f, concept("new"), stale=["row-old"]),
        read_concept,
        row(1, "old"),
        row(1, "new"),
    ),
    "JSON file": Write(
        lambda f: write_json(f / "a.json", [0]),
        lambda f: write_json(f / "a.json", [1] * 1000),
        lambda f: read_json(f / "a.json"),
        [0],
        [1] * 1000,
    ),
    "records": Write(
        lambda f: append_records(f / "r", [{"n": 0}]),
        lambda f: (
            append_records(f / "r", [{"n": 1, "text": "x" * 5000}, {"n": 2}])
            if len(read_records(f / "r")) == 1
            else None
        ),
        lambda f: [record["n"] for record in read_records(f / "r")],
        [0],
        [0, 1, 2],
        ([0, 1],),
    ),
    "log of a resumed run": Write(
        lambda f: append_records(f / "log.jsonl", log_until(3)),
        write_log,
        lambda f: read_records(f / "log.jsonl"),
        log_until(3),
        log_until(4),
        (log_until(2),),
    ),
    "class images": Write(lambda f: (f / "dogs").mkdir(), draw_class_images, read_images, 0, 3, (1, 2)),
    "lock": Write(lambda f: None, lock, lambda f: None, None, None),
}
LEFT = {".run.lock"}  # hidden files that stay


@pytest.fixture(autouse=True)
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils.training.prior, "sample", draw)


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

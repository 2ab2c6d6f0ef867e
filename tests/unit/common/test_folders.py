"""Several files replaced as one: what stays, what goes, what readers see meanwhile."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import utils.common.folders
from utils.common.errors import UserError
from utils.common.files import write_json
from utils.common.folders import COMPLETE, STAGING, files_of, read_folder, replace_folder, settle_folder


def fill(**files: str):
    def write(folder: Path) -> None:
        for name, text in files.items():
            (folder / name).write_text(text)

    return write


def contents(folder: Path) -> dict[str, str]:
    return {name: path.read_text() for name, path in files_of(folder).items()}


def test_the_new_files_stand_and_the_rest_stays(tmp_path: Path):
    folder = tmp_path / "concept"
    replace_folder(folder, fill(kv="1", row="1", old="1"))
    (folder / "log.jsonl").write_text("log")
    (folder / "checkpoint-1").mkdir()
    replace_folder(folder, fill(kv="2", row="2", new="2"), stale=["old", "never", "kv"])
    assert contents(folder) == {"kv": "2", "row": "2", "new": "2", "log.jsonl": "log"}
    assert sorted(os.listdir(folder)) == ["checkpoint-1", "kv", "log.jsonl", "new", "row"]


def test_a_failed_filling_leaves_the_old_content(tmp_path: Path):
    replace_folder(tmp_path, fill(kv="1"))

    def fail(folder: Path) -> None:
        (folder / "kv").write_text("2")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="cannot write .*: No space left on device; make room"):
        replace_folder(tmp_path, fail)
    assert contents(tmp_path) == {"kv": "1"} and os.listdir(tmp_path) == ["kv"]


def interrupted(folder: Path, moved: int) -> None:
    """The folder as a kill leaves it after the list was written and `moved` of the new files were moved."""
    replace_folder(folder, fill(a="1", b="1", c="1"))
    (folder / STAGING).mkdir()
    fill(a="2", b="2", d="2")(folder / STAGING)
    write_json(folder / STAGING / COMPLETE, {"files": ["a", "b", "d"], "stale": ["c"]})
    for name in ("a", "b", "d")[:moved]:
        os.replace(folder / STAGING / name, folder / name)


@pytest.mark.parametrize("moved", [0, 1, 2, 3])
def test_an_interrupted_move_reads_as_the_new_content_and_is_finished(tmp_path: Path, moved: int):
    interrupted(tmp_path, moved)
    before = sorted(os.listdir(tmp_path))
    assert contents(tmp_path) == {"a": "2", "b": "2", "d": "2"}
    assert sorted(os.listdir(tmp_path)) == before  # readers write nothing
    settle_folder(tmp_path)
    assert contents(tmp_path) == {"a": "2", "b": "2", "d": "2"}
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "d"]


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"files": ["a"]},
        {"files": "a", "stale": []},
        {"files": [3], "stale": []},
        {"files": ["a"], "stale": ["../kept"]},
        {"files": ["/etc/passwd"], "stale": []},
        {"files": [".."], "stale": []},
        {"files": ["a"], "stale": [""]},
    ],
)
def test_a_list_that_is_not_ours_does_not_count(tmp_path: Path, value: object):
    folder = tmp_path / "concept"
    replace_folder(folder, fill(a="1"))
    (tmp_path / "kept").write_text("kept")
    (folder / STAGING).mkdir()
    (folder / STAGING / "a").write_text("2")
    write_json(folder / STAGING / COMPLETE, value)
    assert contents(folder) == {"a": "1"}
    settle_folder(folder)
    assert contents(folder) == {"a": "1"} and (tmp_path / "kept").read_text() == "kept"


def test_readers_see_one_content_while_it_is_replaced(tmp_path: Path):
    replace_folder(tmp_path, fill(a="0", b="0"))
    done = threading.Event()

    def read() -> set[tuple[str, str]]:
        seen = set()
        while not done.is_set():
            seen.add(read_folder(tmp_path, lambda f: (f["a"].read_text(), f["b"].read_text())))
        return seen

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        for number in range(101, 140):  # of one length: sizes tell nothing
            replace_folder(tmp_path, fill(a=str(number), b=str(number)))
        done.set()
    assert len(reader.result()) > 1 and all(a == b for a, b in reader.result())


def test_reading_again_has_an_end_and_errors_of_a_quiet_folder_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    replace_folder(tmp_path, fill(a="0"))
    with pytest.raises(KeyError, match="b"):
        read_folder(tmp_path, lambda files: files["b"])
    numbers = iter(range(100))
    monkeypatch.setattr(utils.common.folders, "_stamps", lambda *_: next(numbers))
    with pytest.raises(UserError, match="is being written all the time: try again"):
        read_folder(tmp_path, lambda files: 1)
    with pytest.raises(UserError, match="cannot read .*none: No such file"):
        files_of(tmp_path / "none")

"""The atomic writer, what it says when the outside world fails, torn JSON lines, output folders."""

import errno
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults.commands import as_nobody
from utils.common.errors import UserError
from utils.common.files import (
    append_records,
    check_writable_folder,
    read_json,
    read_records,
    write_atomically,
    write_json,
    write_text,
)
from utils.common.tensor_files import read_metadata, read_tensors, write_pickle, write_tensors

WRITERS: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: write_text(path, "new"),
    "JSON": lambda path: write_json(path, {"new": 1}),
    "tensors": lambda path: write_tensors(path, {"new": torch.ones(3)}),
    "pickle": lambda path: write_pickle(path, {"new": torch.ones(3)}),
}


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    yield
    os.umask(before)


def test_contents(tmp_path: Path):
    write_text(tmp_path / "a" / "b" / "text", "é\n")
    assert (tmp_path / "a" / "b" / "text").read_bytes() == "é\n".encode()
    write_json(tmp_path / "json", {"a": ["é", None]})
    assert read_json(tmp_path / "json") == {"a": ["é", None]}
    tensors = {"x": torch.arange(6).reshape(2, 3).T, "step": torch.tensor(2.0)}
    write_tensors(tmp_path / "t", tensors, {"state": json.dumps({"step": 3})})
    assert {k: v.tolist() for k, v in read_tensors(tmp_path / "t").items()} == {
        "x": [[0, 3], [1, 4], [2, 5]],
        "step": 2.0,
    }
    assert read_metadata(tmp_path / "t", "state") == {"step": 3}
    write_pickle(tmp_path / "p", {"x": torch.ones(2)})
    assert torch.load(tmp_path / "p", weights_only=True)["x"].tolist() == [1, 1]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize("writer", WRITERS)
def test_files_get_the_umasks_mode(tmp_path: Path, writer: str, mask: int):
    with umask(mask):
        WRITERS[writer](tmp_path / "file")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_older_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str, call: str
):
    path = tmp_path / "file"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(
        UserError, match=r"^cannot write .*/file: No space left on device; make room"
    ) as error:
        WRITERS[writer](path)
    assert "\n" not in str(error.value)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt()])
def test_other_errors_pass_through(tmp_path: Path, error: BaseException):
    def fail(partial: Path) -> None:
        partial.write_text("half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(tmp_path / "file", fail)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("writer", ["tensors", "pickle"])
def test_a_missing_folder_and_a_name_too_long_are_one_line(tmp_path: Path, writer: str):
    with pytest.raises(UserError, match="cannot write .*/none/file: No such file or directory"):
        WRITERS[writer](tmp_path / "none" / "file")
    with pytest.raises(UserError, match="File name too long; choose a shorter name"):
        WRITERS[writer](tmp_path / ("x" * 256))
    WRITERS[writer](tmp_path / ("é" * 127 + "x"))  # 255 bytes, as many as there may be
    with pytest.raises(UserError, match=r"cannot write '.*a\\nb/file'"):
        WRITERS[writer](tmp_path / "a\nb" / "file")


def test_read_only_folders_are_one_line(tmp_path: Path):
    tmp_path.chmod(0o755)
    folder = tmp_path / "shut"
    folder.mkdir(mode=0o555)
    (folder / "log.jsonl").write_text("{}\n")
    for parent in tmp_path.parents[: -len(Path(tempfile.gettempdir()).parts)]:  # pytest's: the owner's alone
        parent.chmod(0o755)
    with as_nobody():
        for writer in WRITERS.values():
            with pytest.raises(UserError, match="cannot write .*file: Permission denied; give a folder that"):
                writer(folder / "file")
        with pytest.raises(UserError, match="cannot write .*log.jsonl: Permission denied"):
            append_records(folder / "log.jsonl", [{}])
        with pytest.raises(UserError, match="--output_dir .*/shut/new cannot be used: Permission denied"):
            check_writable_folder(folder / "new", "output_dir")
        assert read_records(folder / "log.jsonl") == [{}]
    assert os.listdir(folder) == ["log.jsonl"]


def test_records_are_read_up_to_the_torn_line_and_the_file_is_only_read(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a"')
    assert read_records(path) == [{"a": 1}, {"a": 2}]
    assert path.read_bytes().endswith(b'{"a"')
    append_records(path, [{"a": 3}, {"a": "é"}])
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n{"a": 3}\n{"a": "é"}\n'
    append_records(path, [])
    assert len(read_records(path)) == 4


@pytest.mark.parametrize(
    "line", [b"", b"3", b"[1]", b"null", b'{"a"', b"\xff", '{"a": 1}'.encode("utf-16"), b"[" * 100000]
)
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: bytes):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"{}\n" + line + b"\n{}\n")
    with pytest.raises(UserError, match="log.jsonl is not JSON lines: line [23] is not an object") as error:
        read_records(path)
    assert "\n" not in str(error.value)


def test_a_disk_that_fills_takes_whole_lines_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "log.jsonl"
    append_records(path, [{"a": 1}])

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot write .*log.jsonl: No space left on device; make room"):
        append_records(path, [{"a": 2}])
    assert path.read_text() == '{"a": 1}\n'
    append_records(path, [{"a": 3}], durable=False)  # asks for no sync
    assert path.read_text() == '{"a": 1}\n{"a": 3}\n'


def test_an_unreadable_json_file_is_one_line(tmp_path: Path):
    for content in (b"{", b"\xff\xfe", b"[" * 100000):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(UserError, match="x.json is not valid JSON .*it will be made again") as error:
            read_json(tmp_path / "x.json")
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot read .*: Is a directory"):
        read_json(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"x" * 100, (2**62).to_bytes(8, "little"), b"\2" + bytes(7) + b"{}"]
)
def test_what_is_no_tensor_file_is_one_line(tmp_path: Path, content: bytes):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    if content[:1] != b"\2":  # a file of no tensors is one, without metadata
        with pytest.raises(UserError, match="cannot read .*x.safetensors: .*damaged") as error:
            read_tensors(path)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="x.safetensors.*damaged"):
        read_metadata(path, "state")
    with pytest.raises(UserError, match="cannot read .*none"):
        read_tensors(tmp_path / "none")


def test_output_folders_that_can_be_used_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for path in ("new/folder", tmp_path / "new", ".", "é" * 127):
        check_writable_folder(path, "output_dir")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("file", "file is a file"),
        ("file/in/it", "file is a file"),
        ("link", "link is a link to nothing"),
        ("link/in/it", "link is a link to nothing"),
        ("x" * 256, "File name too long"),
        ("none/" + "x" * 256, "File name too long"),
        ("a\0b", "is not a name of a folder"),
        ("\ud800", "is not a name of a folder"),
        ("", "is not a name of a folder"),
        ("/proc/1/new", ""),
    ],
)
def test_output_folders_that_cannot_be_used_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, reason: str
):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("link").symlink_to("nowhere")
    with pytest.raises(UserError, match=f"^--output_dir .*cannot be used: .*{reason}") as error:
        check_writable_folder(path, "--output_dir")
    assert "\n" not in str(error.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]


def test_a_full_disk_is_noticed_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="--output_dir .* cannot be used: No space left on device; give"):
        check_writable_folder(tmp_path, "output_dir")

"""One run to a folder: who is refused, what a dead process leaves, what never goes."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

import utils.training.lock
from utils.common.errors import UserError
from utils.training.lock import LOCK_FILE, Holder, RunLock, holder, is_held

HOLD = """
import sys, time
from utils.training.lock import RunLock
with RunLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def held(tmp_path: Path):
    """Another process that holds tmp_path / "out"."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "out"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_while_the_first_lives(tmp_path: Path, held: subprocess.Popen):
    out = tmp_path / "out"
    who = f"process {held.pid} on {socket.gethostname()}, since 20..-..-.. ..:..:.."
    for _ in range(2):
        with pytest.raises(UserError, match=f"out is in use by {who}: wait for its end, or") as error:
            RunLock(out).__enter__()
        assert "\n" not in str(error.value)
    with RunLock(tmp_path / "other"):
        pass
    os.kill(held.pid, signal.SIGKILL)
    held.wait()
    with RunLock(out):  # a dead process holds nothing
        assert str(os.getpid()) in (out / LOCK_FILE).read_text()


def test_the_lock_ends_with_its_block_and_nothing_is_deleted(tmp_path: Path):
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(KeyError), RunLock(tmp_path):
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} on"), RunLock(tmp_path):
            pass
        raise KeyError
    with RunLock(tmp_path):
        pass
    assert sorted(os.listdir(tmp_path)) == [LOCK_FILE, "checkpoint-1"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "null",
        '{"pid": "x"}',
        '{"pid": 1, "host": "a\\nb", "since": 1}',
        '{"pid": -1, "host": "a", "since": 1}',
    ],
)
def test_a_lock_file_of_junk_holds_nothing_and_names_nobody(tmp_path: Path, content: str):
    with RunLock(tmp_path):
        (tmp_path / LOCK_FILE).write_text(content)
        with pytest.raises(UserError, match="is in use by another process: wait") as error, RunLock(tmp_path):
            pass
        assert "\n" not in str(error.value)
    with RunLock(tmp_path):
        assert f'"pid": {os.getpid()}' in (tmp_path / LOCK_FILE).read_text()


def test_a_holder_is_named_once_it_has_signed(tmp_path: Path, held: subprocess.Popen, monkeypatch):
    out = tmp_path / "out"
    me = socket.gethostname()
    assert (is_held(out), holder(out).pid, holder(out).host) == (True, held.pid, me)
    left = json.dumps(asdict(Holder(ended_process(), me, "2026-01-01 00:00:00")))
    signed = (out / LOCK_FILE).read_text()
    for unsigned in ("", left):  # what a run that ended, and one that was killed, leave to the next
        (out / LOCK_FILE).write_text(unsigned)
        with pytest.raises(UserError, match="out is in use by a process that its .run.lock does not name"):
            holder(out, patience=0)
        monkeypatch.setattr(utils.training.lock.time, "sleep", lambda _: (out / LOCK_FILE).write_text(signed))
        assert holder(out, patience=0.5).pid == held.pid
    held.kill()
    held.wait()
    assert (is_held(out), holder(out)) == (False, None)
    with RunLock(out):
        assert holder(out).pid == os.getpid()
    assert ((out / LOCK_FILE).read_text(), is_held(out)) == ("", False)


def ended_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_where_there_are_no_locks_a_line_says_so(tmp_path: Path, monkeypatch, capsys):
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    for change in (
        lambda: monkeypatch.setattr(utils.training.lock.fcntl, "flock", unsupported),
        lambda: monkeypatch.setattr(utils.training.lock, "fcntl", None),
    ):
        change()
        with RunLock(tmp_path):
            pass
        assert (
            capsys.readouterr().err == f"{tmp_path / LOCK_FILE} cannot be locked: start no second run there\n"
        )


def test_impossible_folders_are_one_line(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .*file/.run.lock: "), RunLock(tmp_path / "file"):
        pass

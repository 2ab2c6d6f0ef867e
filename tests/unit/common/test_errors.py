"""How a user's mistake, and what the machine lacks, reach stderr: one line, at the end."""

import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from utils.common.errors import (
    MORE_MEMORY,
    UserError,
    exit_on_user_error,
    in_memory,
    is_out_of_memory,
)

REPOSITORY = Path(__file__).parents[3]


class Pieces:
    """A stderr that keeps what each call wrote."""

    def __init__(self) -> None:
        self.written: list[str] = []

    def write(self, text: str) -> None:
        self.written.append(text)


def raising(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def ended(act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[str]]:
    """(exit status, what was written to stderr, by piece)."""
    stderr = Pieces()
    monkeypatch.setattr(sys, "stderr", stderr)
    with pytest.raises(SystemExit) as stopped:
        exit_on_user_error(act)
    return stopped.value.code, stderr.written


@pytest.mark.parametrize("error, status", [(UserError("no dog"), 2), (FloatingPointError("no dog"), 3)])
def test_a_line_of_one_process_is_not_split_by_another(monkeypatch, error, status):
    assert ended(raising(error), monkeypatch) == (status, ["error: no dog\n"])


@pytest.mark.parametrize("error", [UserError("no dog"), MemoryError(), RuntimeError("a mistake of ours")])
def test_a_progress_bar_ends_before_the_line(error, capsys, monkeypatch):
    """One in a loop over it, and one that is updated by hand; nothing is drawn after the error."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)

    def act() -> None:
        bar = tqdm(total=8, desc="training", file=stream, mininterval=0)
        bar.update(2)
        for _ in tqdm(range(3), "class images", file=stream, mininterval=0):
            raise error

    with pytest.raises(SystemExit if not isinstance(error, RuntimeError) else RuntimeError):
        exit_on_user_error(act)
    assert not list(tqdm._instances)
    *drawn, last, end = stream.getvalue().split("\n")
    assert "training: " in "".join(drawn) and end == ""
    assert last.startswith("error: ") == (not isinstance(error, RuntimeError)), stream.getvalue()


SAID = {
    "torch, CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has …"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "MPS": RuntimeError("MPS backend out of memory (MPS allocated: 8.10 GB)"),
    "torch, CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"
    ),
    "Windows": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    "C++": RuntimeError("std::bad_alloc"),
    "Python": MemoryError(),
    "system": OSError(errno.ENOMEM, "Cannot allocate memory", "model.safetensors"),
    "thread": RuntimeError("can't start new thread"),
}


@pytest.mark.parametrize("kind", SAID)
def test_out_of_memory_says_what_was_done_and_what_needs_less(kind: str, monkeypatch):
    def act() -> None:
        with in_memory("setting up", "give --low_memory"), in_memory("training step 3"):
            try:
                raise SAID[kind]
            except Exception as error:  # as libraries do
                raise OSError("Unable to load weights from checkpoint file") from error

    line = "error: out of memory while training step 3: give --low_memory\n"
    assert ended(act, monkeypatch) == (2, [line])
    assert ended(raising(SAID[kind]), monkeypatch) == (2, [f"error: out of memory: {MORE_MEMORY}\n"])


def test_an_allocator_that_fails(monkeypatch):
    with_too_much = in_memory("drawing")(lambda: torch.empty(2**50))
    line = f"error: out of memory while drawing: {MORE_MEMORY}\n"
    assert ended(with_too_much, monkeypatch) == (2, [line])


def test_other_errors_are_not_of_memory():
    own = ValueError("x")
    own.__cause__ = own
    for error in (own, RuntimeError("size mismatch"), UserError("out of memory"), KeyboardInterrupt()):
        assert not is_out_of_memory(error)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        exit_on_user_error(raising(RuntimeError("a mistake of ours")))


PROGRAM = """
import sys
from utils.common.errors import UserError, exit_on_user_error
def main():
    print("x" * int(sys.argv[1]))
    file = open(sys.argv[2], "w")
    sys.stderr.write("a remark\\n")
    file.write("content")
    file.close()
    if "fail" in sys.argv:
        raise UserError("no dog")
exit_on_user_error(main)
"""


@pytest.mark.parametrize(
    "streams, status, said",
    [
        ("", 0, "a remark\n"),
        ("fail", 2, "a remark\nerror: no dog\n"),
        ("1>&- 2>&-", 0, ""),
        ("<&- 1>&- 2>&-", 0, ""),
        ("fail 1>&- 2>&-", 2, ""),
        (
            ">/dev/full",
            2,
            "a remark\nerror: cannot write to stdout or a file: No space left on device; make room",
        ),
        ("2>/dev/full", 0, ""),
        ("fail >/dev/full 2>/dev/full", 2, ""),
        (
            "| true; exit ${PIPESTATUS[0]}",
            2,
            "a remark\nerror: cannot write to stdout or a file: Broken pipe; what read the output has ended",
        ),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_closed_and_full_streams(streams: str, status: int, said: str, unbuffered: str, tmp_path: Path):
    """No file is written to by what was meant for a stream, and a stream is no reason for a traceback."""
    size = 1_000_000 if "|" in streams else 5
    command = f'exec 3>&- 4>&-; "$0" -c "$1" {size} "$2" {streams}'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, PROGRAM, str(tmp_path / "file")],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr[: len(said) or None]) == (status, said), done
    assert done.stderr.count("\n") == said.rstrip("\n").count("\n") + bool(said)
    assert (tmp_path / "file").read_text() == "content"  # the work is done, whatever becomes of its words


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_stream_that_knows_ascii_alone_gets_escapes(unbuffered: str):
    program = "from utils.common.errors import exit_on_user_error as run\n"
    program += 'run(lambda: print("1 \\u00b7 L_spl, \\u00e9"))'
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env=os.environ | ascii_alone | {"PYTHONUNBUFFERED": unbuffered},
        capture_output=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"1 \\xb7 L_spl, \\xe9\n", b"")

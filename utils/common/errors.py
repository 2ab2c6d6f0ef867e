"""A user's mistake, reported in one line."""

import errno
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

# What the system says of paths that it keeps from us, and of disks that fail or are gone, rather than of
# mistakes in this program.
REFUSALS = frozenset(
    getattr(errno, name)
    for name in "EACCES EPERM EROFS ENOSPC EDQUOT EFBIG ENAMETOOLONG ELOOP ENOTDIR ENOENT EIO ESTALE "
    "ENODEV ENXIO ENOTCONN".split()
    if hasattr(errno, name)
)

# What libraries say when memory runs out: torch's two allocators, cuBLAS, cuDNN, the system.
_NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|std::bad_alloc|cannot allocate memory|"
    r"_STATUS_ALLOC_FAILED|can't start new thread|could not (create|execute) a (primitive|memory)",
    re.IGNORECASE,
)
# Of a write that does not say to what.
_NOT_WRITTEN = {
    errno.EPIPE: "what read the output has ended",
    errno.EIO: "the terminal is closed, or the disk fails",
    errno.ENOSPC: "make room and run it again",
    errno.EDQUOT: "make room and run it again",
    errno.EFBIG: "it is larger than this system or `ulimit -f` allows",
}
MORE_MEMORY = "close other programs, or use a machine with more memory"


class UserError(ValueError):
    """A user's mistake. The message is one line: what was given, what is allowed, what to do.

    It stays one when it repeats what a stranger's file holds: `one_line_of`.
    """

    def __str__(self) -> str:
        return one_line_of(super().__str__())


def short(text: object, length: int = 60) -> str:
    """`text` in one line of at most `length` characters, for a message that repeats what a user gave."""
    line = " ".join(str(text).split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


def exit_on_user_error(main: Callable[[], None]) -> None:
    """Run `main`; on a UserError print `error: <message>` to stderr and exit with status 2.

    A file or folder that the system refuses is a mistake of that kind, and so is memory that runs out. A
    FloatingPointError, a training whose numbers are no longer finite, is one line too, with status 3, and so
    is Ctrl-C, with status 130. A stdout that fails, full or closed, is such a mistake too, once the work is
    done. The libraries that `main` imports make no remarks.
    """
    _open_streams()
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # read when they are imported
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    output = _Stream(sys.stdout)
    try:
        with redirect_stderr(_Stream(sys.stderr)), redirect_stdout(output):
            main()
        _flush_stdout()
        if output.failed:
            raise output.failed
    except BaseException as error:
        _close_progress_bars()
        status, line = _ending(error)
        if line is None:
            with suppress(OSError):
                _flush_stdout()
            raise
        _Stream(sys.stderr).write(line)
        with suppress(OSError):
            _flush_stdout()
        sys.exit(status)


def _ending(error: BaseException) -> tuple[int, str | None]:
    """The exit status and the line for the user; None for an error that is not theirs."""
    if isinstance(error, KeyboardInterrupt):
        return 130, "stopped by Ctrl-C\n"
    if isinstance(error, UserError):
        return 2, error_line(error)
    if is_out_of_memory(error):
        doing, less = getattr(error, "doing", None), getattr(error, "less", MORE_MEMORY)
        return 2, error_line(f"out of memory{f' while {doing}' if doing else ''}: {less}")
    if isinstance(error, FloatingPointError):
        return 3, error_line(error)
    if isinstance(error, OSError) and error.filename is None and error.errno in _NOT_WRITTEN:
        return 2, error_line(
            f"cannot write to stdout or a file: {error.strerror}; {_NOT_WRITTEN[error.errno]}"
        )
    if isinstance(error, OSError) and error.filename is not None and error.errno in REFUSALS:
        path = short(error.filename, 500)
        return 2, error_line(f"cannot use {path}: {error.strerror}; check the path and its permissions")
    return 1, None


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, or an error that a library made of that: of the machine or of a GPU."""
    seen: list[BaseException] = []  # an error can be its own cause
    while error is not None and not isinstance(error, UserError) and error not in seen:
        seen.append(error)
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return True
        if isinstance(error, Exception) and _NO_MEMORY.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def system_error(error: BaseException | None) -> int | None:
    """The system's error number of an error or of what it was made of; safetensors has it in its text alone:
    "… (os error 28)". None if the system had no part in it.
    """
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        number = re.search(r"os error (\d+)", str(error))
        if number or getattr(error, "errno", None):
            return int(number[1]) if number else error.errno
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def in_memory(doing: str | None = None, less: str | None = None) -> Iterator[None]:
    """What to say when memory runs out inside: what was being done, and what would need less.

    Of several around each other the innermost says it.
    """
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            for name, value in (("doing", doing), ("less", less)):
                if value is not None and not hasattr(error, name):
                    setattr(error, name, value)
        raise


def _open_streams() -> None:
    """A stream that the caller closed (`2>&-`) leads nowhere; else the next file opened would get its number,
    and what libraries print."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if number == 0 else "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for an ASCII locale: \xb7 in the place of ·
    if isinstance(sys.stdout, io.TextIOWrapper):  # of file names that are not text, and for old locales
        sys.stdout.reconfigure(errors="backslashreplace")


class _Stream:
    """stdout or stderr: what cannot be written to it, for its disk is full or it is gone, ends no run.

    failed: the first error.
    """

    def __init__(self, stream: Any):
        self._stream, self.failed = stream, None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        self._try(lambda: self._stream.write(text))

    def flush(self) -> None:
        self._try(lambda: self._stream.flush())

    def _try(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except OSError as error:
            self.failed = self.failed or error
            if self._stream in (sys.__stdout__, sys.__stderr__):
                _lead_nowhere(1 if self._stream is sys.__stdout__ else 2)


def _flush_stdout() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _lead_nowhere(1)
        raise


def _lead_nowhere(number: int) -> None:
    """A stream that failed: else the interpreter tries again at its end, and complains."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _close_progress_bars() -> None:
    """An open bar would share its line with the message, and be drawn again after it."""
    if "tqdm" in sys.modules:
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", ())):
            with suppress(OSError, ValueError):
                bar.close()


def error_line(message: object) -> str:
    """`error: <message>` and a line break, to be written in one piece.

    A launcher starts its processes unbuffered, and the pieces of a `print` would mix with another process's.
    """
    return f"error: {one_line_of(message)}\n"


def one_line_of(message: object) -> str:
    """The message in one line of at most 2,000 characters, which no escape sequence in it can change."""
    line = " ".join(str(message).splitlines())
    plain = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in line)
    return plain if len(plain) <= 2000 else f"{plain[:1500]} … {plain[-490:]}"

"""Faults at the n-th file operation of a child process, and a tally of what survived them.

Python announces every open, rename, remove, mkdir, rmdir, chmod and truncate to audit hooks just before it
happens; fsync is wrapped. So a hook can kill the process, or let the operation fail, at each of them.
"""

import errno
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils.common.errors import UserError, exit_on_user_error

TALLY: dict[str, list[int]] = {}  # fault -> [tries, survived]

_EVENTS = frozenset("open os.rename os.remove os.mkdir os.rmdir os.chmod os.truncate os.link".split())
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_fsync = os.fsync


@dataclass
class Fault:
    """kind: "kill" before operation `number`; "tear": kill at the number-th fsync with half of the file on
    the disk; an errno's name: that operation fails; "full" and "shut": from then on no operation that needs
    room, or none that changes anything, succeeds; "gone": the folder itself is moved away before it.
    """

    kind: str
    number: int
    root: str
    count: int = 0

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if event in _EVENTS and self._concerns(event, args):
            reads = event == "open" and not (args[2] or 0) & _WRITING
            self._operation(reads, event in ("os.remove", "os.rmdir"), args[0])

    def _concerns(self, event: str, args: tuple[Any, ...]) -> bool:
        path = args[0]
        if isinstance(path, int) or path is None:
            return event != "open"
        path = os.fsdecode(path)
        return path.startswith(self.root) or (not path.startswith("/") and event != "open")  # rmtree's names

    def fsync(self, descriptor: int) -> None:
        if self.kind == "tear":
            self.count += 1
            if self.count == self.number:
                link = f"/proc/self/fd/{descriptor}"
                if os.path.isfile(link):
                    os.truncate(link, os.path.getsize(link) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        else:
            self._operation(reads=False, frees=False, path=None)
        _fsync(descriptor)

    def _operation(self, reads: bool, frees: bool, path: Any) -> None:
        """path: which the system names in its error, except of an open file."""
        named = () if path is None or isinstance(path, int) else (path,)
        if self.kind == "tear":
            return
        self.count += 1
        if self.kind == "kill":
            if self.count == self.number:
                os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == "full":
            if self.count >= self.number and not reads and not frees:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *named)
        elif self.kind == "gone":
            if self.count == self.number:
                os.rename(self.root, f"{self.root}.away")
        elif self.kind == "shut":
            if self.count >= self.number and not reads:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), *named)
        elif self.count == self.number:
            code = getattr(errno, self.kind)
            raise OSError(code, os.strerror(code), *named)


@dataclass(frozen=True)
class Ending:
    """How a child ended: killed, or with code 0, 2 and a UserError's message, 3 and a traceback."""

    killed: bool
    code: int
    message: str
    fired: bool  # whether the operation that the fault waits for came
    operations: int  # how many the fault saw; 0 of a killed child


def in_child(act: Callable[[], Any], fault: Fault | None = None) -> Ending:
    """`act` in a forked process, with the fault."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(
            1
        )  # the parent's threads are not in the child, which would wait for them forever
        os.close(reading)
        code, message = 0, ""
        try:
            if fault is not None:
                os.fsync = fault.fsync
                sys.addaudithook(fault.hook)
            act()
        except UserError as error:
            code, message = 2, str(error)
        except BaseException:
            code, message = 3, traceback.format_exc()
        finally:
            count = 0 if fault is None else fault.count
            os.write(writing, f"{count} {message}".encode(errors="replace"))
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        count, _, message = pipe.read().partition(" ")
    _, status = os.waitpid(pid, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    code = -1 if killed else os.waitstatus_to_exitcode(status)
    fired = killed or (fault is not None and int(count) >= fault.number)
    return Ending(killed, code, message, fired, int(count or 0))


def each_operation(
    kind: str, prepare: Callable[[int], Path], act: Callable[[Path], Any]
) -> Iterator[tuple[Path, Ending]]:
    """(folder, how it ended) for a fault at operation 1, 2, … until `act` has no more operations.

    prepare(number) makes a fresh folder.
    """
    for number in range(1, 10_000):
        folder = prepare(number)
        ending = in_child(lambda folder=folder: act(folder), Fault(kind, number, str(folder)))
        if not ending.fired:
            assert number > 1 and ending.code == 0, ending
            return
        yield folder, ending


def survived(fault: str) -> None:
    """Counts a try of `fault` whose checks all passed."""
    TALLY.setdefault(fault, [0, 0])[1] += 1


def tried(fault: str) -> None:
    TALLY.setdefault(fault, [0, 0])[0] += 1


def printed_by(main: Callable[[], Any], prepare: Callable[[], Any] = lambda: None) -> tuple[int, list[str]]:
    """(exit status, lines of stdout and stderr) of `main` as a command line runs it, in a forked process.

    prepare: called in it before, e.g. to lower a limit. A line that a progress bar drew over counts as one.
    """
    with tempfile.TemporaryFile() as file:
        pid = os.fork()
        if pid == 0:
            torch.set_num_threads(1)
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
            sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
            code = 1
            try:
                prepare()
                exit_on_user_error(main)
                code = 0
            except SystemExit as end:
                code = end.code
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        file.seek(0)
        return os.waitstatus_to_exitcode(status), file.read().decode(errors="replace").split("\n")[:-1]


def is_one_line(code: int, lines: list[str]) -> bool:
    """Whether a mistake is one line, the last, which no progress bar shares, with exit status 2."""
    errors = [line for line in lines if "error:" in line or "Traceback" in line]
    return code == 2 and errors == lines[-1:] and errors[0].startswith("error: ")

"""One run to an output folder."""

import errno
import json
import os
import socket
import sys
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from pathlib import Path
from types import TracebackType

from utils.errors import UserError
from utils.files import one_line, shown

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK_FILE = ".run.lock"


class RunLock:
    """`with RunLock(folder):` holds the folder; raises UserError when another run does, naming it.

    The kernel's lock (flock) on `<folder>/.run.lock`, which ends with its process, however that ends; the
    file stays, and nothing is ever deleted. A process that was forked off, and runs on, goes on holding it.

    On NFS the server keeps the lock, for all machines; when a machine crashes, until it is back or its lease
    ends. A mount with `nolock` or `local_lock` excludes only runs of the same machine. Where there are no
    locks at all (Windows, some cluster file systems) a line on stderr says so, and the run goes on.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / LOCK_FILE
        self._descriptor: int | None = None

    def __enter__(self) -> "RunLock":
        with one_line("write", self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._lock(descriptor)
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%F %T}"}
            with one_line("write", self.path):  # in place: the lock belongs to this file
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, (json.dumps(holder) + "\n").encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)  # which releases it
        self._descriptor = None

    def _lock(self, descriptor: int) -> None:
        missing = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "this system has no flock")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{shown(self.path.parent)} is in use by {_holder(descriptor)}: "
                "wait for its end, or give another folder"
            ) from error
        except OSError as error:
            if error.errno not in missing:
                raise UserError(f"cannot lock {shown(self.path)}: {error.strerror}") from error
            print(f"{shown(self.path)} cannot be locked: start no second run there", file=sys.stderr)


def _holder(descriptor: int) -> str:
    """Who wrote the lock file; a run that has only just taken it has not written yet."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        who = f"process {holder['pid']:d} on {holder['host']}, since {holder['since']}"
    except (ValueError, TypeError, KeyError, RecursionError):
        return "another process"
    return who if who.isprintable() else "another process"


def holder(folder: str | Path) -> dict | None:
    """Who holds the folder: pid, host, since; None while nobody does or where there are no locks.

    Empty for a process that has only just taken it. It tries the lock, for a moment: not for a folder whose
    run is about to begin.
    """
    path = Path(folder) / LOCK_FILE
    if fcntl is None or not path.is_file():
        return None
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(file.fileno(), 4096, 0)
            return json.loads(text) if text.endswith(b"\n") else {}
    return None


def lock_of_run(folder: str | Path) -> AbstractContextManager:
    """The lock of a training's output folder, which the first of its processes holds for all."""
    return RunLock(folder) if int(os.environ.get("RANK", 0)) == 0 else nullcontext()

"""One run to an output folder."""

import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType

from utils.common.errors import UserError
from utils.common.files import one_line, shown

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK_FILE = ".run.lock"


@dataclass(frozen=True)
class Holder:
    """Who has signed a lock file. since: local time, to the second."""

    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid:d} on {self.host}, since {self.since}"


class InUse(UserError):
    """Another run holds the folder."""


class RunLock:
    """`with RunLock(folder):` holds the folder; raises InUse, a UserError, when another run does,
    naming it.

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
            me = Holder(os.getpid(), socket.gethostname(), datetime.now().isoformat(" ", "seconds"))
            with one_line("write", self.path):  # in place: the lock belongs to this file
                os.ftruncate(descriptor, 0)
                os.lseek(descriptor, 0, os.SEEK_SET)
                os.write(descriptor, (json.dumps(asdict(me)) + "\n").encode())
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # unsigned, so that the next holder is not taken for this one before it signs
            os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)  # which releases it
        self._descriptor = None

    def _lock(self, descriptor: int) -> None:
        missing = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "this system has no flock")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InUse(
                f"{shown(self.path.parent)} is in use by {_signature(descriptor) or 'another process'}: "
                "wait for its end, or give another folder"
            ) from error
        except OSError as error:
            if error.errno not in missing:
                raise UserError(f"cannot lock {shown(self.path)}: {error.strerror}") from error
            print(f"{shown(self.path)} cannot be locked: start no second run there", file=sys.stderr)


def _signature(descriptor: int) -> Holder | None:
    """Who has signed the lock file; None while its holder has not, whoever held it before, and for junk."""
    try:
        signed = Holder(**json.loads(os.pread(descriptor, 4096, 0)))
        who = str(signed)
        if signed.pid < 1:  # a group of processes, or all of them
            return None
        if signed.host == socket.gethostname():
            os.kill(signed.pid, 0)
    except (ValueError, TypeError, RecursionError, OverflowError, ProcessLookupError):
        return None
    except PermissionError:  # it lives, and is another user's
        pass
    return signed if who.isprintable() else None


def is_held(folder: str | Path) -> bool:
    """Whether a run holds the folder; False where there are no locks.

    It tries the lock, for a moment: not for a folder whose run is about to begin.
    """
    return _look(folder)[0]


def holder(folder: str | Path, patience: float = 5) -> Holder | None:
    """Who holds the folder; None while nobody does or where there are no locks. Tries it as `is_held` does.

    A run that has only just taken it is waited for until it has signed, for at most `patience` seconds; then
    UserError is raised.
    """
    until = time.monotonic() + patience
    while True:
        held, signed = _look(folder)
        if not held or signed:
            return signed
        if time.monotonic() > until:
            raise UserError(f"{shown(folder)} is in use by a process that its {LOCK_FILE} does not name")
        time.sleep(0.02)


def _look(folder: str | Path) -> tuple[bool, Holder | None]:
    path = Path(folder) / LOCK_FILE
    if fcntl is None or not path.is_file():
        return False, None
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True, _signature(file.fileno())
    return False, None


@contextmanager
def claim(folder: str | Path) -> Iterator[bool]:
    """Holds the folder as RunLock does; yields False, and holds nothing, where another process holds it."""
    with ExitStack() as held:
        try:
            held.enter_context(RunLock(folder))
        except InUse:
            mine = False
        else:
            mine = True
        yield mine


def lock_of_run(folder: str | Path) -> AbstractContextManager:
    """The lock of a training's output folder, which the first of its processes holds for all."""
    return RunLock(folder) if int(os.environ.get("RANK", 0)) == 0 else nullcontext()

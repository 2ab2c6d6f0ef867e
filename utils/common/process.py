"""Child processes that end when the process that started them does, however that ends.

`start_child` starts this file, which asks the kernel for a signal at its starter's end, then becomes the
command:

    python -P process.py PARENT SIGNAL COMMAND…

So no Python runs between fork and exec, which is not safe with threads. Only Linux has such a signal:
elsewhere a command outlives a starter that is killed by SIGKILL.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def start_child(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    at_end: signal.Signals,
    cwd: Path | None = None,
) -> subprocess.Popen:
    """Start the command with both its outputs in the file `log`, replaced, and nothing on stdin.

    environment: all of its variables. at_end: what it gets when this process ends. It has a session of its
    own: Ctrl-C in a terminal reaches a whole process group, so it would count twice.
    """
    wrapped = [sys.executable, "-P", __file__, str(os.getpid()), str(int(at_end)), *command]
    started = list(command) if sys.platform == "win32" else wrapped  # whose execv ends the caller's process
    with log.open("w") as file:
        how = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
        how |= {"env": environment, "cwd": cwd, "start_new_session": True}
        return _starter().submit(subprocess.Popen, started, **how).result()


def run_child(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
    """Run the command to its end. Its exit code, minus the signal's number if one ended it.

    When a signal ends this process meanwhile, the command gets SIGTERM to save and end; at a second one, and
    at the SIGKILL of this process, it is killed. Other parameters as in `start_child`.
    """
    with start_child(command, log, environment, getattr(signal, "SIGKILL", signal.SIGTERM)) as process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            try:
                process.wait()
            finally:
                process.kill()
            raise


@cache
def _starter() -> ThreadPoolExecutor:
    """The kernel signals a child at the end of the *thread* that started it, and a server's threads end when
    they are idle; this one lives as long as the program."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="starts children")


def _become(parent: int, at_end: int, command: Sequence[str]) -> None:
    """Replace this process by the command, which gets the signal `at_end` when `parent` ends."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell starts its background commands with it ignored
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, at_end, 0, 0, 0)
        if os.getppid() != parent:  # it has ended already
            sys.exit(128 + at_end)
    os.execv(command[0], command)


if __name__ == "__main__":
    _become(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])

"""Becomes a command that is asked to stop, by SIGINT, when the process that started it ends.

    python child.py PARENT COMMAND…

PARENT: the process id of the starter. On Linux the kernel sends the signal, also when the starter is killed;
a training then saves and ends. Elsewhere the command outlives its starter. A file of its own, because code
between fork and exec is not safe in a program with threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell starts its background commands with it ignored
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
        if os.getppid() != parent:  # it has ended already
            sys.exit(128 + signal.SIGINT)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()

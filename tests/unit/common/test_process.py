"""Child processes: their output, their exit codes, and that they end with their starter."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from utils.common.process import run_child, start_child

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's death signal is Linux's")


@pytest.mark.parametrize(
    ("code", "ends"), [("print('out')", 0), ("raise SystemExit(3)", 3), ("os.kill(os.getpid(), 9)", -9)]
)
def test_the_exit_code_is_the_commands(tmp_path, code, ends):
    log = tmp_path / "log.txt"
    assert run_child([sys.executable, "-c", f"import os; {code}"], log, os.environ) == ends
    assert log.read_text() == ("out\n" if ends == 0 else "")


def test_it_has_the_environment_given_no_input_and_a_session_of_its_own(tmp_path):
    code = "import os, sys; print(os.environ['A'], sys.stdin.read() == '', os.getsid(0) == os.getpid())"
    environment = {"A": "b", "PATH": os.environ["PATH"]}
    log = tmp_path / "log.txt"
    assert run_child([sys.executable, "-c", code], log, environment) == 0
    assert log.read_text() == "b True True\n"


SAVES = """
import signal, sys, time
def save(*_):
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print("trains", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("stopped", [KeyboardInterrupt, SystemExit])
def test_a_child_saves_when_its_starter_is_stopped(tmp_path, stopped):
    log = tmp_path / "train.txt"

    def stop(*_):
        if log.read_text() == "trains\n":
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise stopped

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        with pytest.raises(stopped):
            run_child([sys.executable, "-c", SAVES], log, os.environ)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert log.read_text() == "trains\nsaved\n"


@LINUX
def test_it_outlives_the_thread_that_started_it(tmp_path):
    children = []
    code = "import time; time.sleep(60)"

    def start() -> None:
        how = {"environment": os.environ, "at_end": signal.SIGKILL}
        children.append(start_child([sys.executable, "-c", code], tmp_path / "log.txt", **how))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    time.sleep(0.5)
    assert children[0].poll() is None
    children[0].kill()
    assert children[0].wait() == -signal.SIGKILL


STARTER = """
import os, signal, sys
from pathlib import Path
from utils.common.process import start_child
code = "import time, signal; signal.signal(2, lambda *_: exit(print('asked', flush=True)))"
code += "; print(1, flush=True); time.sleep(60)"
log, at_end = Path(sys.argv[1]), signal.Signals(int(sys.argv[2]))
child = start_child([sys.executable, "-c", code], log, os.environ, at_end)
print(child.pid, flush=True)
child.wait()
"""


@LINUX
@pytest.mark.parametrize(("at_end", "said"), [(signal.SIGKILL, "1\n"), (signal.SIGINT, "1\nasked\n")])
def test_it_gets_the_signal_when_its_starter_is_killed(tmp_path, at_end, said):
    log = tmp_path / "log.txt"
    command = [sys.executable, "-c", STARTER, str(log), str(int(at_end))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as starter:
        child = int(starter.stdout.readline())
        while log.read_text() != "1\n":
            assert starter.poll() is None
            time.sleep(0.02)
        starter.kill()
    for _ in range(200):
        if not alive(child):
            break
        time.sleep(0.02)
    assert not alive(child) and log.read_text() == said


def alive(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"

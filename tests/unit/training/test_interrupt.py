"""Signals between steps: the step ends, the run is saved, the exit code says which signal it was."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from utils.training.interrupt import Interruption

LOOP = """
import signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup, and its children inherit that
from utils.training.interrupt import Interruption
with Interruption() as interrupted:
    for step in range(1, 1000):
        if step == 1:
            print("running", flush=True)
        end = time.monotonic() + float(sys.argv[1])
        while time.monotonic() < end:
            time.sleep(0.01)
        if interrupted.requested:
            print(interrupted.line(step, "out/checkpoint-1"))
            sys.exit(interrupted.exit_code)
"""


def run(step_seconds: float, *signals: int, pause: float = 0.4) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a loop of steps that gets the signals."""
    with subprocess.Popen(
        [sys.executable, "-c", LOOP, str(step_seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "running\n"
        for number in signals:
            os.kill(process.pid, number)
            time.sleep(pause)
        out, err = process.communicate(timeout=20)
        return process.returncode, out, err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_step_ends_and_the_code_is_the_signals(number: signal.Signals, code: int):
    assert run(0.5, number) == (
        code,
        f"stopped by {number.name} after step 1, saved in out/checkpoint-1; "
        "to go on, give the same command with --resume_from_checkpoint latest\n",
        f"{number.name}: saving after this step; again ends at once\n",
    )


@pytest.mark.parametrize(
    ("first", "second", "code"), [(signal.SIGINT, signal.SIGINT, 130), (signal.SIGINT, signal.SIGTERM, 143)]
)
def test_a_second_signal_ends_at_once(first: signal.Signals, second: signal.Signals, code: int):
    start = time.monotonic()
    assert run(15, first, second) == (code, "", "SIGINT: saving after this step; again ends at once\n")
    assert time.monotonic() - start < 10


WARNINGS = [signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU]


@pytest.mark.parametrize("warning", WARNINGS)
def test_a_warning_saves_too_and_what_follows_it_does_not_end_the_step(warning: signal.Signals):
    """A cluster warns and later asks; the system warns of a limit again each second."""
    code, out, err = run(1, warning, warning, signal.SIGTERM, pause=0.05)
    assert code == 128 + warning and err == f"{warning.name}: saving after this step\n"
    assert out.startswith(f"stopped by {warning.name} after step 1, saved in")


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption(quiet=True) as interrupted:
            signal.raise_signal(signal.SIGHUP)
            assert not interrupted.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_echo_of_the_first_signal_does_not_count():
    code, out, _ = run(1, signal.SIGINT, signal.SIGINT, pause=0.01)
    assert code == 130 and out.startswith("stopped by SIGINT after step 1, saved in")


@pytest.fixture
def python_own_interrupt():
    """Ctrl-C raises KeyboardInterrupt, also where the tests run in the background, which ignores it."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


def test_handlers_are_back_afterwards(python_own_interrupt):
    numbers = (signal.SIGTERM, signal.SIGINT, *WARNINGS)
    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(KeyError), Interruption(quiet=True) as interrupted:
        assert not interrupted.requested and interrupted.exit_code == 143  # heard of from another rank
        signal.raise_signal(signal.SIGINT)
        assert interrupted.requested and interrupted.signal is signal.SIGINT and interrupted.exit_code == 130
        raise KeyError
    assert [signal.getsignal(number) for number in numbers] == before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_another_thread_catches_nothing():
    seen = []

    def enter() -> None:
        with Interruption() as interrupted:
            seen.append((interrupted.requested, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(False, signal.getsignal(signal.SIGINT))]

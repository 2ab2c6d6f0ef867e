"""SIGTERM, Ctrl-C and their like end a run between two steps, with its state saved."""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

URGENT = (signal.SIGTERM, signal.SIGINT)
# A closed terminal, a cluster's warning before it kills, a limit of processor time. Windows has none of them.
WARNINGS = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGXCPU") if hasattr(signal, name))
ECHO_SECONDS = 0.25  # Ctrl-C reaches a process from the terminal and again from its launcher


def catch(handler: Callable[[int, FrameType | None], object]) -> dict[signal.Signals, Any]:
    """Call `handler` at the signals; returns the handlers of before. What `nohup` ignores stays ignored."""
    ignored = [number for number in WARNINGS if signal.getsignal(number) is signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in URGENT + WARNINGS if number not in ignored}


class Interruption:
    """`with Interruption() as interrupted:` the first signal sets `interrupted.requested`, no more.

    The loop asks after each step, saves, prints `interrupted.line(…)` and exits with
    `interrupted.exit_code`: 143 for SIGTERM, 130 for SIGINT, 128 + the number of others. A second SIGTERM or
    Ctrl-C ends the process at once, with the same code; one within 0.25 s of the first is its echo by a
    launcher and does not count, nor does one that follows a warning (SIGHUP, SIGUSR1, SIGXCPU).

    Several processes have to agree, or they wait for each other forever: reduce `float(requested)` over them
    (with the step's losses), and stop all of them when the result is above 0. `quiet` is for ranks other than
    the first. Outside the main thread, where Python allows no handlers, nothing is caught. On exit the
    handlers of before are back.
    """

    def __init__(self, quiet: bool = False):
        self.signal: signal.Signals | None = None
        self._quiet, self._before = quiet, {}
        self._asked: float | None = None  # when the first SIGTERM or Ctrl-C came

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._before = catch(self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            # None: a handler that Python did not set and cannot set again
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @property
    def requested(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """128 + the signal; 143 on a process that only heard of the signal from another."""
        return 128 + (self.signal or signal.SIGTERM)

    def line(self, step: int, checkpoint: object) -> str:
        """What to print after saving."""
        name = (self.signal or signal.SIGTERM).name
        return (
            f"stopped by {name} after step {step}, saved in {checkpoint}; "
            "to go on, give the same command with --resume_from_checkpoint latest"
        )

    def _handle(self, number: int, frame: FrameType | None) -> None:
        urgent = number in URGENT
        if self.signal is None:
            self.signal = signal.Signals(number)
            line = f"{self.signal.name}: saving after this step{'; again ends at once' if urgent else ''}\n"
            with suppress(OSError):  # a closed terminal
                if not self._quiet:  # written past Python's buffers, which the signal may have interrupted
                    os.write(2, line.encode())
        if urgent and self._asked is None:
            self._asked = time.monotonic()
        elif urgent and time.monotonic() - self._asked > ECHO_SECONDS:
            os._exit(128 + number)

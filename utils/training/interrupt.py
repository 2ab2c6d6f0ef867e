"""SIGTERM and Ctrl-C end a run between two steps, with its state saved."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO_SECONDS = 0.25  # Ctrl-C reaches a process from the terminal and again from its launcher


class Interruption:
    """`with Interruption() as interrupted:` the first signal sets `interrupted.requested`, no more.

    The loop asks after each step, saves, prints `interrupted.line(…)` and exits with
    `interrupted.exit_code`: 143 for SIGTERM, 130 for SIGINT. A second signal ends the process at once, with
    the same code; one within 0.25 s of the first is its echo by a launcher and does not count.

    Several processes have to agree, or they wait for each other forever: reduce `float(requested)` over them
    (with the step's losses), and stop all of them when the result is above 0. `quiet` is for ranks other than
    the first. Outside the main thread, where Python allows no handlers, nothing is caught. On exit the
    handlers of before are back.
    """

    def __init__(self, quiet: bool = False):
        self.signal: signal.Signals | None = None
        self._quiet, self._time, self._before = quiet, 0.0, {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
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
        if self.signal is None:
            self.signal, self._time = signal.Signals(number), time.monotonic()
            if not self._quiet:  # written past Python's buffers, which the signal may have interrupted
                os.write(2, f"{self.signal.name}: saving after this step; again ends at once\n".encode())
        elif time.monotonic() - self._time > ECHO_SECONDS:
            os._exit(128 + number)

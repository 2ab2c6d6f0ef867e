"""A long training: the memory, the open files and the time of a step stay what they were."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest

from tests.faults.shim import in_child, survived, tried
from utils.training.logger import Logger

STEPS, EARLY, MEGABYTE = 2000, 600, 2**20


@pytest.mark.faults
def test_two_thousand_steps_are_flat(tmp_path: Path, train: Callable[..., Path], monkeypatch):
    """With checkpoints: 8 are written, 1 is kept. Compared are steps 600 to 1200 with the last 600."""
    memory, files, threads, times = [], [], [], []
    log = Logger.log

    def noting(self: Logger, step: int, values: dict[str, float]) -> None:
        log(self, step, values)
        memory.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        files.append(len(os.listdir("/proc/self/fd")))
        threads.append(threading.active_count())
        times.append(time.monotonic())

    def program() -> None:
        train(tmp_path, max_train_steps=STEPS, checkpointing_steps=250, checkpoints_total_limit=1, hflip=True)
        assert len(times) == STEPS
        growth = max(memory[-100:]) - max(memory[EARLY : EARLY + 100])
        assert growth < 20 * MEGABYTE, f"{growth / MEGABYTE:.1f} MB more"
        assert set(files[EARLY:]) == {files[EARLY]} and set(threads[EARLY:]) == {threads[EARLY]}
        durations = [after - before for before, after in zip(times, times[1:], strict=False)]
        early, late = median(durations[EARLY : 2 * EARLY]), median(durations[-EARLY:])
        assert late < 1.3 * early, f"a step took {early * 1000:.1f} ms, then {late * 1000:.1f}"

    monkeypatch.setattr(Logger, "log", noting)
    tried("2,000 steps")
    ending = in_child(program)
    assert ending.code == 0, ending.message
    survived("2,000 steps")

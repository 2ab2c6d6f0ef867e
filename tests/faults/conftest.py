"""The table of faults at the end of a run; a concept to damage."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.programs import write_concept
from tests.faults.shim import TALLY


@pytest.fixture
def concept(tmp_path: Path, tiny_base: Path, pictures: Callable[..., Path]) -> Path:
    """The folder of a concept of tiny_base."""
    write_concept(tmp_path / "concept", tiny_base, "<new1>", pictures("dog"))
    return tmp_path / "concept"


def pytest_terminal_summary(terminalreporter) -> None:
    if TALLY:
        terminalreporter.section("faults")
        terminalreporter.write_line(f"{'fault':58} {'tries':>6} {'survived':>9} {'lost':>5}")
        total = ("all", [sum(column) for column in zip(*TALLY.values(), strict=True)])
        for fault, (tries, survived) in [*sorted(TALLY.items()), total]:
            terminalreporter.write_line(f"{fault:58} {tries:6} {survived:9} {tries - survived:5}")

"""The table of faults at the end of a run."""

from tests.faults.shim import TALLY


def pytest_terminal_summary(terminalreporter) -> None:
    if TALLY:
        terminalreporter.section("faults")
        terminalreporter.write_line(f"{'fault':58} {'tries':>6} {'survived':>9} {'lost':>5}")
        total = ("all", [sum(column) for column in zip(*TALLY.values(), strict=True)])
        for fault, (tries, survived) in [*sorted(TALLY.items()), total]:
            terminalreporter.write_line(f"{fault:58} {tries:6} {survived:9} {tries - survived:5}")

"""The table of faults at the end of a run; a concept to damage; a folder with one of everything."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.programs import fill_place, write_concept
from tests.faults.shim import TALLY


@pytest.fixture
def concept(tmp_path: Path, tiny_base: Path, pictures: Callable[..., Path]) -> Path:
    """The folder of a concept of tiny_base."""
    write_concept(tmp_path / "concept", tiny_base, "<new1>", pictures("dog"))
    return tmp_path / "concept"


@pytest.fixture(scope="module")
def place(tiny_base: Path, pictures: Callable[..., Path]) -> Iterator[Path]:
    """A folder of `fill_place`, outside pytest's own, which nobody else can read."""
    with tempfile.TemporaryDirectory() as name:
        fill_place(Path(name), tiny_base, pictures("dog"))
        yield Path(name)


@pytest.fixture
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place as the working folder, without the network."""
    import huggingface_hub.constants

    monkeypatch.chdir(place)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return place


def pytest_terminal_summary(terminalreporter) -> None:
    if TALLY:
        terminalreporter.section("faults")
        terminalreporter.write_line(f"{'fault':58} {'tries':>6} {'survived':>9} {'lost':>5}")
        total = ("all", [sum(column) for column in zip(*TALLY.values(), strict=True)])
        for fault, (tries, survived) in [*sorted(TALLY.items()), total]:
            terminalreporter.write_line(f"{fault:58} {tries:6} {survived:9} {tries - survived:5}")

"""Limits of fields: types, lengths, control characters and counts, whatever the value came from."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from utils.common.errors import UserError, one_line_of
from utils.common.flags import option
from utils.common.limits import check_fields


@dataclass(frozen=True)
class Config:
    name: str | None = option(None, "")
    note: str = option("", "", blank=True, longest=5)
    count: int = option(1, "", minimum=1)
    rate: float = option(0.5, "", above=0)
    loud: bool = option(False, "")
    files: tuple[Path, ...] = option((), "")


@pytest.mark.parametrize(
    "field, value",
    [
        *(
            ("name", value)
            for value in ("", " ", "a\nb", "\x1b[1m", "a\u2028b", "\udcff", "x" * 1001, 3, b"a")
        ),
        *(("note", value) for value in ("abcdef", None)),
        *(("count", value) for value in (0, 2**64, 10**9, 1.0, True, "1", None)),
        *(("rate", value) for value in (0, float("nan"), float("inf"), "1", True)),
        *(("loud", value) for value in (1, "true", None)),
        *(("files", value) for value in (["a"], ("a",), (Path("x" * 256),), (Path("a\nb"),), None)),
    ],
)
def test_out_of_limits(field, value):
    with pytest.raises(UserError, match=f"--{field}"):
        check_fields(Config(**{field: value}))


@pytest.mark.parametrize(
    "field, value",
    [
        *(("name", value) for value in (None, "a\u200db é", "x" * 1000)),
        *(("note", value) for value in ("", "abcde")),
        ("count", 10**9 - 1),
        *(("rate", value) for value in (1, 1e300)),
        ("files", (Path("x" * 255), Path("a b"))),
    ],
)
def test_within_limits(field, value):
    check_fields(Config(**{field: value}))


def test_no_message_can_break_its_line_or_colour_the_terminal():
    assert one_line_of("a\nb\x1b[31m\udcff é") == "a b\\x1b[31m\\udcff é"
    assert len(one_line_of("x" * 10_000)) < 2000

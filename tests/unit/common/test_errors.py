"""How a user's mistake reaches stderr."""

import sys

import pytest

from utils.common.errors import UserError, exit_on_user_error


class Pieces:
    """A stderr that keeps what each call wrote."""

    def __init__(self) -> None:
        self.written: list[str] = []

    def write(self, text: str) -> None:
        self.written.append(text)


@pytest.mark.parametrize("error, status", [(UserError("no dog"), 2), (FloatingPointError("no dog"), 3)])
def test_a_line_of_one_process_is_not_split_by_another(monkeypatch, error, status):
    def fails():
        raise error

    stderr = Pieces()
    monkeypatch.setattr(sys, "stderr", stderr)
    with pytest.raises(SystemExit) as stopped:
        exit_on_user_error(fails)
    assert stopped.value.code == status
    assert stderr.written == ["error: no dog\n"]

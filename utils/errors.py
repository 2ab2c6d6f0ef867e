"""A user's mistake, reported in one line."""

import sys
from collections.abc import Callable


class UserError(ValueError):
    """A user's mistake. The message is one line: what was given, what is allowed, what to do."""


def short(text: object, length: int = 60) -> str:
    """`text` in one line of at most `length` characters, for a message that repeats what a user gave."""
    line = " ".join(str(text).split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


def exit_on_user_error(main: Callable[[], None]) -> None:
    """Run `main`; on a UserError print `error: <message>` to stderr and exit with status 2.

    A FloatingPointError, a training whose numbers are no longer finite, is one line too, with status 3.
    """
    try:
        main()
    except FloatingPointError as error:
        print("error:", error, file=sys.stderr)
        sys.exit(3)
    except UserError as error:
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
        sys.exit(2)

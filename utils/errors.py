"""A user's mistake, told in one line."""

import sys
from collections.abc import Callable


class UserError(ValueError):
    """A user's mistake. The message is one line: what was given, what is allowed, what to do."""


def exit_on_user_error(main: Callable[[], None]) -> None:
    """Run `main`; on a UserError print `error: <message>` to stderr and exit with status 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

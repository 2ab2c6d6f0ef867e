"""A user's mistake, reported in one line."""

import errno
import sys
from collections.abc import Callable

# What the system says of paths that it keeps from us, rather than of mistakes in this program.
REFUSALS = frozenset(
    getattr(errno, name)
    for name in "EACCES EPERM EROFS ENOSPC EDQUOT EFBIG ENAMETOOLONG ELOOP ENOTDIR".split()
)


class UserError(ValueError):
    """A user's mistake. The message is one line: what was given, what is allowed, what to do.

    It stays one when it repeats what a stranger's file holds: `one_line_of`.
    """

    def __str__(self) -> str:
        return one_line_of(super().__str__())


def short(text: object, length: int = 60) -> str:
    """`text` in one line of at most `length` characters, for a message that repeats what a user gave."""
    line = " ".join(str(text).split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


def exit_on_user_error(main: Callable[[], None]) -> None:
    """Run `main`; on a UserError print `error: <message>` to stderr and exit with status 2.

    A file or folder that the system refuses is a mistake of that kind. A FloatingPointError, a training whose
    numbers are no longer finite, is one line too, with status 3, and so is Ctrl-C, with status 130.
    """
    try:
        main()
    except KeyboardInterrupt:
        sys.stderr.write("stopped by Ctrl-C\n")
        sys.exit(130)
    except FloatingPointError as error:
        write_error(error)
        sys.exit(3)
    except UserError as error:
        write_error(error)
        sys.exit(2)
    except OSError as error:
        if error.errno not in REFUSALS or error.filename is None:
            raise
        message = (
            f"cannot use {short(error.filename, 500)}: {error.strerror}; check the path and its permissions"
        )
        write_error(message)
        sys.exit(2)


def write_error(message: object) -> None:
    """Write `error: <message>` to stderr, in one piece.

    A launcher starts its processes unbuffered, and the pieces of a `print` would mix with another process's.
    """
    sys.stderr.write(f"error: {one_line_of(message)}\n")


def one_line_of(message: object) -> str:
    """The message in one line of at most 2,000 characters, which no escape sequence in it can change."""
    line = " ".join(str(message).splitlines())
    plain = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in line)
    return plain if len(plain) <= 2000 else f"{plain[:1500]} … {plain[-490:]}"

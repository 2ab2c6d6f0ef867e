"""Several files of a folder replaced as one, so that a reader sees the old ones or the new ones.

A file system can rename one file at a time. So the new files are first made, all of them, in the hidden
folder `.new` inside; then a list of them, `.new/COMPLETE`, is written: from that moment on the new files
count, wherever they stand. Then they are moved to their places. A kill before the list leaves the old
content, a kill after it the new one: `files_of` reads through the list, the next `replace_folder` finishes
the move.
"""

import json
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TypeVar

from utils.common.errors import UserError
from utils.common.files import one_line, remove, shown, sync, write_json

STAGING, COMPLETE = ".new", "COMPLETE"
T = TypeVar("T")


def replace_folder(folder: Path, fill: Callable[[Path], None], stale: Iterable[str] = ()) -> None:
    """`fill(staging)` makes new files, which take the place of those of their names in `folder`.

    stale: names of older files that are no part of the new content and go with the old one. Everything else
    in the folder stays. When `fill` fails, the old content stays as it is; an OSError becomes a UserError.
    One writer at a time (RunLock); readers may come at any moment.
    """
    staging = folder / STAGING
    with one_line("write", folder):
        folder.mkdir(parents=True, exist_ok=True)
        settle_folder(folder)
        try:
            staging.mkdir()
            fill(staging)
            names = sorted(path.name for path in staging.iterdir())
            assert all((staging / name).is_file() for name in names), f"folders in a folder: {names}"
            for name in names:
                sync(staging / name)
            gone = sorted(set(stale) - set(names))
            write_json(staging / COMPLETE, {"files": names, "stale": gone})
        except BaseException:
            with suppress(OSError):  # first, so that no list stands for files that are gone
                (staging / COMPLETE).unlink(missing_ok=True)
            with suppress(OSError):
                remove(staging)
            raise
        sync(staging)
        settle_folder(folder)


def settle_folder(folder: Path) -> None:
    """Finishes the replacement that a kill interrupted, or drops it if its files were not all made."""
    staging = folder / STAGING
    if not staging.is_dir() or staging.is_symlink():
        remove(staging)
        return
    if (listed := _read_list(staging)) is not None:
        names, stale = listed
        waiting = [name for name in names if (staging / name).exists()]  # the others are in their places
        # First away with all that is old, so that also a reader that does not know of the list may miss
        # files, but never sees an old one next to a new one.
        for name in [*stale, *waiting]:
            (folder / name).unlink(missing_ok=True)
        for name in waiting:
            os.replace(staging / name, folder / name)
        sync(folder)
    remove(staging)


def files_of(folder: Path) -> dict[str, Path]:
    """name -> path of the folder's files as they count now, without hidden ones. Reads only."""
    with one_line("read", folder):
        here = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
        listed = _read_list(folder / STAGING)
    if listed is not None:
        names, stale = listed
        waiting = {name: folder / STAGING / name for name in names if (folder / STAGING / name).is_file()}
        here = {name: path for name, path in here.items() if name not in stale} | waiting
    return {name: path for name, path in sorted(here.items()) if not name.startswith(".")}


def read_folder(folder: Path, read: Callable[[dict[str, Path]], T]) -> T:
    """`read(files)` of one content: again, up to 10 times, when a writer replaced the files meanwhile.

    Whatever `read` raises is raised when the files were the same before and after.
    """
    for _ in range(10):
        with ExitStack() as held:
            before = _stamps(files := files_of(folder), held)
            try:
                value = read(files)
            except Exception:
                now = files_of(folder)
                if files == now and before == _stamps(now, held):  # names too: a file may have moved
                    raise
                continue
            if before == _stamps(files_of(folder), held):
                return value
    raise UserError(f"{shown(folder)} is being written all the time: try again when its run has ended")


def _stamps(files: dict[str, Path], held: ExitStack) -> dict[str, tuple[int, int, int] | None]:
    """What changes when a file is another one, and does not when it is moved; None where none opens.

    The files stay open in `held`: the inode number of one that is gone and closed can be the next one's, with
    the same time of a coarse clock.
    """
    stamps = {}
    for name, path in files.items():
        try:
            status = os.fstat(held.enter_context(path.open("rb")).fileno())
            stamps[name] = (status.st_ino, status.st_mtime_ns, status.st_size)
        except (FileNotFoundError, PermissionError):  # `read` says so, if it needs the file
            stamps[name] = None
    return stamps


def _read_list(staging: Path) -> tuple[list[str], list[str]] | None:
    """(new names, stale names) of a replacement whose files are all made, else None.

    The list comes from a folder that may be a stranger's: names that lead out of the folder do not count.
    A list that cannot be read raises: it may stand for new content.
    """
    if staging.is_symlink() or not (staging / COMPLETE).is_file():
        return None
    try:
        content = json.loads((staging / COMPLETE).read_text(encoding="utf-8"))
        names, stale = content["files"], content["stale"]
        plain = all(
            isinstance(name, str) and name not in ("", ".", "..", COMPLETE) and Path(name).name == name
            for name in [*names, *stale]
        )
    except (FileNotFoundError, ValueError, TypeError, KeyError, RecursionError):  # gone: just moved
        return None
    return (names, stale) if plain and isinstance(names, list) and isinstance(stale, list) else None

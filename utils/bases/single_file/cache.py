"""The cache of what is made once from a single file, and the file's digest.

A folder of the cache is whole or not there: it is filled under another name, by one process while others
wait, and then renamed. Any of it may be deleted at any time.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from utils.common.errors import UserError
from utils.common.files import one_line, read_json, remove, shown, sync, write_json

VARIABLE = "CLASSDIFFUSION_CACHE"
FILES = "files.json"  # of a folder of the cache: {path: size}, written last


def cache_folder() -> Path:
    """Of the environment variable, else `classdiffusion` in XDG_CACHE_HOME or ~/.cache."""
    if given := os.environ.get(VARIABLE):
        return Path(given).expanduser().absolute()
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "classdiffusion"


def made_once(folder: Path, fill: Callable[[Path], None]) -> Path:
    """`folder`, which `fill(partial)` makes if it is not there or not whole.

    Raises UserError where it cannot be written.
    """
    if is_whole(folder):
        return folder
    from filelock import FileLock, Timeout  # with huggingface_hub

    with one_line(f"write the cache ({VARIABLE} names another)", folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"waiting for the process that writes {shown(folder)}", flush=True)
            lock.acquire()
        try:
            if not is_whole(folder):
                _make(folder, fill)
        finally:
            lock.release()
    return folder


def _make(folder: Path, fill: Callable[[Path], None]) -> None:
    partial = folder.with_name(f".{folder.name}.new")
    try:
        for left in (partial, folder):  # of a process that was killed; with files gone
            remove(left)
        partial.mkdir()
        fill(partial)
        paths = [path for path in sorted(partial.rglob("*")) if path.is_file()]
        write_json(partial / FILES, {str(path.relative_to(partial)): path.stat().st_size for path in paths})
        sync(partial)
        os.replace(partial, folder)
    except BaseException:
        remove(partial)
        raise


def is_whole(folder: Path) -> bool:
    """Whether the folder has all the files that were written into it, of their sizes."""
    if not (folder / FILES).is_file():
        return False
    files = read_json(folder / FILES)
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == size for name, size in files.items()
    )


def digest_of(path: Path) -> str:
    """The file's SHA-256, 64 hexadecimal digits. It is not calculated again while the file's size and times
    are as they were.

    Raises UserError for a file that cannot be read, and for one that changes meanwhile.
    """
    full = path.resolve()
    name = hashlib.sha256(os.fsencode(full)).hexdigest()[:32]
    memo, stamp = cache_folder() / "digests" / f"{name}.json", stamp_of(full)
    if memo.is_file() and (known := read_json(memo))["stamp"] == stamp:
        return known["sha256"]
    with one_line("read", path), full.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    check_unchanged(path, stamp)
    if _writable(memo.parent):  # a cache that can only be read serves too
        write_json(memo, {"path": str(full), "stamp": stamp, "sha256": digest})
    return digest


def stamp_of(path: Path) -> list[int]:
    """Size, and when the content and the entry changed last, in nanoseconds."""
    with one_line("read", path):
        stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def check_unchanged(path: Path, stamp: list[int]) -> None:
    """Raises UserError if the file is no longer as it was when `stamp_of` gave the stamp."""
    if stamp_of(path) != stamp:
        raise UserError(f"{shown(path)} changed while it was read: wait until it is whole, and run it again")


def _writable(folder: Path) -> bool:
    existing = next(part for part in (folder, *folder.parents) if part.exists())
    return os.access(existing, os.W_OK)

"""Atomic file writes, JSON, and JSON lines, the last of which a killed run may have left torn.

An error of the outside world (a full disk, a read-only or missing folder, an impossible name) is one line.
"""

import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from stat import S_IMODE
from typing import Any

from utils.common.errors import UserError, is_out_of_memory, short
from utils.common.limits import LONGEST_NAME, check_file_name, is_unprintable

WINDOWS = sys.platform == "win32"
_ADVICE = {
    errno.ENOSPC: "make room and run it again",
    errno.EDQUOT: "make room and run it again",
    errno.EFBIG: "the file is larger than this system or `ulimit -f` allows",
    errno.EROFS: "give a folder that can be written to",
    errno.EACCES: "give a folder that can be written to",
    errno.EPERM: "give a folder that can be written to",
    errno.ENOTDIR: "a part of the path is a file",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def shown(path: str | Path) -> str:
    """The path as it stands; quoted where a line break would tear the message, cut in the middle if long."""
    text = str(path)
    if len(text) > 500:
        text = f"{text[:200]}…{text[-200:]}"
    return text if text.isprintable() else repr(text)


@contextmanager
def one_line(doing: str, path: str | Path) -> Iterator[None]:
    """An OSError inside becomes a UserError: "cannot <doing> <path>: <reason>; <what to do>"."""
    try:
        yield
    except OSError as error:
        if is_out_of_memory(error):
            raise
        advice = f"; {_ADVICE[error.errno]}" if error.errno in _ADVICE else ""
        reason = error.strerror or " ".join(str(error).split())
        raise UserError(f"cannot {doing} {shown(path)}: {reason}{advice}") from error


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """`write(partial)` fills a file next to `path`, which then takes its place in one piece.

    At every moment, also of a kill or a power cut, `path` is the older file or the whole new one. The file
    gets the umask's mode. When `write` fails, the partial file is removed and the older one stays; an
    OSError becomes a UserError that names `path`. Only SIGKILL leaves a partial file: `.<name>.<pid>.tmp`.
    """
    # Cut, for a name may fill all of the file system's 255 bytes. The process is named, for two may share
    # a folder of class images.
    stem = path.name.encode()[:230].decode(errors="ignore")
    partial = path.with_name(f".{stem}.{os.getpid()}.tmp")
    with one_line("write", path):
        try:
            partial.touch()
            mode = S_IMODE(partial.stat().st_mode)
            write(partial)
            partial.chmod(mode)  # safetensors and tempfile make files that only their owner can read
            sync(partial)
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


def give_umask_mode(folder: Path) -> None:
    """To the safetensors files in the folder, which the library makes readable for their owner alone."""
    mode = S_IMODE(folder.stat().st_mode) & 0o666
    for path in folder.rglob("*.safetensors"):
        path.chmod(mode)


def remove(path: Path) -> None:
    """A folder with all that is in it, or a file. Of a link the link alone: its target is somebody else's."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Returns when the file's content, or the folder's entries, are on the disk.

    Windows writes the entries by itself, opens no folder, and syncs only what is open for writing.
    """
    if WINDOWS and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """UTF-8, atomically; missing folders are made."""
    with one_line("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
    content = text.encode(errors="backslashreplace")  # a file name that is not UTF-8; JSON reads it back
    write_atomically(path, lambda partial: partial.write_bytes(content))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises UserError for a file that is not JSON, which this program never writes."""
    try:
        with one_line("read", path):
            return json.loads(path.read_text(encoding="utf-8-sig"))
    except UserError:  # itself a ValueError
        raise
    except (ValueError, RecursionError) as error:
        reason = f"{shown(path)} is not valid JSON ({error})"
        raise UserError(f"{reason}; remove it, it will be made again") from error


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, without a byte order mark. Raises UserError for any other."""
    try:
        with one_line("read", path):
            return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"{shown(path)} is not UTF-8 text (byte {error.start}): save it as UTF-8"
        raise UserError(reason) from error


def read_lines(path: Path, kind: str = "prompts file", what: str = "prompt") -> dict[int, str]:
    """Line number -> line, of the lines that are not blank, without blanks at their ends.

    kind, what: what the file and a line of it are called in errors.
    Raises UserError for a file that is missing, empty or no text in UTF-8, and for control characters.
    """
    if not path.is_file():
        raise UserError(f"no {kind} at {shown(path)}; give a text file with one {what} per line")
    numbered = enumerate(read_text(path).splitlines(), start=1)
    lines = {number: line.strip() for number, line in numbered if line.strip()}
    if not lines:
        raise UserError(f"{kind} {shown(path)} is empty; write one {what} per line")
    for number, line in lines.items():
        if is_unprintable(line.replace("\t", " ")):
            raise UserError(
                f"{kind} {shown(path)}, line {number} has a control character; is it a text file?"
            )
    return lines


def read_records(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; none if there is no file. The file is only read.

    A last line without its end, which a killed run left or a running one is writing, is passed over.
    Raises UserError naming a whole line that is not a JSON object.
    """
    if not path.exists():
        return []
    with one_line("read", path):
        content = path.read_bytes()
    records = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            record = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise UserError(
                f"{shown(path)} is not JSON lines: line {number} is not an object; repair or remove it"
            )
        records.append(record)
    return records


def append_records(path: Path, records: Iterable[dict[str, Any]], durable: bool = True) -> None:
    """Adds whole lines or none of them. A torn last line, which a killed run left, is cut off before.

    durable: they are on the disk when this returns; else a power cut can take the newest lines.
    """
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    content = lines.encode(errors="backslashreplace")  # as in `write_text`
    with one_line("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file:
            end = _cut_torn_line(file)
            try:
                rest = memoryview(content)
                while rest:  # a nearly full disk takes a part
                    rest = rest[file.write(rest) :]
                if durable:
                    os.fsync(file.fileno())
            except BaseException:
                file.truncate(end)
                raise


def _cut_torn_line(file: Any) -> int:
    """Cuts what follows the last line break; returns the file's size."""
    size = file.seek(0, os.SEEK_END)
    if size:
        file.seek(size - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            size = file.readall().rfind(b"\n") + 1
            file.truncate(size)
    return size


def path_inside(folder: Path, name: Any, place: str) -> Path:
    """`folder / name`, for a relative path that a file holds.

    Raises UserError, beginning with `place`, unless it stays in the folder, however it is spelled.
    """
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    for part in parts or ("",):
        check_file_name(f"{place} has the path {short(repr(name))}: its part", part, f"stay in {folder}")
    return folder / Path(*parts)


def check_writable_folder(path: str | Path, flag: str) -> None:
    """Raises UserError unless the folder `path` of the flag `flag` can be made and written to.

    Leaves nothing behind: the nearest folder that exists takes a nameless file, written to the disk, so a
    disk that is full already is noticed too.
    """
    folder = Path(path)
    given = f"--{flag.lstrip('-')} {shown(path)}"
    try:
        if not str(path) or "\0" in str(path):
            raise OSError(errno.EINVAL, "is not a name of a folder")
        existing = next(part for part in [folder, *folder.absolute().parents] if os.path.lexists(part))
        if not existing.is_dir():
            what = "a link to nothing" if existing.is_symlink() and not existing.exists() else "a file"
            raise OSError(errno.EEXIST, f"{shown(existing)} is {what}")
        longest = os.pathconf(existing, "PC_NAME_MAX") if hasattr(os, "pathconf") else LONGEST_NAME
        if any(len(os.fsencode(part)) > longest for part in folder.parts):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        with tempfile.TemporaryFile(dir=existing, buffering=0) as probe:
            probe.write(bytes(4096))
            os.fsync(probe.fileno())
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "is not a name of a folder"
        raise UserError(f"{given} cannot be used: {reason}; give a folder that can be written to") from error

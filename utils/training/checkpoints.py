"""The checkpoints of a run: which are whole, which one to resume from, which may go.

A checkpoint is a folder `checkpoint-<step>` with the concept's files, training_config.json,
training_state.safetensors and, written last, manifest.json with the size and the SHA-256 of each of them.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from utils.common.errors import UserError
from utils.common.files import one_line, remove, shown, sync, write_text
from utils.training.state import STATE_FILE, saved_step

MANIFEST, CONFIG_FILE = "manifest.json", "training_config.json"
EARLIER_STATE = "training_state.pt"  # of versions without a manifest


@contextmanager
def new_checkpoint(output_dir: Path, step: int) -> Iterator[Path]:
    """A hidden folder to fill; sealed at the end of the block, it becomes checkpoint-<step>.

    When the block fails, the folder is removed and the checkpoints stay as they were; an OSError becomes a
    UserError.
    An older checkpoint of the same step is replaced. After a kill there is the older one or the new one.
    """
    staged = output_dir / f".checkpoint-{step}.new"
    with one_line("write", output_dir / f"checkpoint-{step}"):
        output_dir.mkdir(parents=True, exist_ok=True)
        settle(output_dir)
        staged.mkdir()
        try:
            yield staged
            seal(staged)
        except BaseException:
            with suppress(OSError):
                remove(staged)
            raise
        _put_in_place(staged)


def seal(folder: Path) -> None:
    """Write the manifest of all files in `folder`, which makes it a whole checkpoint."""
    paths = [path for path in sorted(folder.iterdir()) if path.name != MANIFEST]
    for path in paths:
        sync(path)
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in paths}
    assert {STATE_FILE, CONFIG_FILE} <= files.keys(), f"a checkpoint of {sorted(files)}"
    write_text(folder / MANIFEST, _dump({"format": 1, "files": files}))
    sync(folder)


def why_broken(checkpoint: Path) -> str | None:
    """None for a whole checkpoint, every byte of which is read; else what is wrong with it."""
    try:
        return _compare(checkpoint)
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _compare(checkpoint: Path) -> str | None:
    if not checkpoint.is_dir():
        return "is not a folder"
    if not (checkpoint / MANIFEST).is_file():
        if (checkpoint / EARLIER_STATE).is_file():
            return (
                f"was written by an earlier version ({EARLIER_STATE}, no {MANIFEST}): only that can resume it"
            )
        return f"has no {MANIFEST}"
    files = _read_manifest((checkpoint / MANIFEST).read_bytes())
    if files is None:
        return f"has a damaged {MANIFEST}"
    for name, entry in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"lacks {shown(name)}"
        if (size := path.stat().st_size) != entry["bytes"]:
            return f"has {size} of the {entry['bytes']} bytes of {shown(name)}"
        if _sha256(path) != entry["sha256"]:
            return f"has a damaged {shown(name)}: its SHA-256 differs"
    return None


def checkpoints(output_dir: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return [path for path in _candidates(output_dir) if why_broken(path) is None]


def find_checkpoint(resume_from: str, output_dir: Path) -> tuple[Path | None, list[str]]:
    """(the checkpoint to resume from, one line for each newer one that was skipped and why).

    'latest': the newest whole one of output_dir, None while there is no checkpoint at all; else a path.
    Raises UserError for a path to a broken checkpoint, and for 'latest' when all of them are broken.
    """
    if resume_from != "latest":
        if reason := why_broken(Path(resume_from)):
            given = f"--resume_from_checkpoint {shown(resume_from)} {reason}"
            raise UserError(f"{given}: give 'latest' or a whole checkpoint")
        return Path(resume_from), []
    skipped = []
    for path in reversed(_candidates(output_dir)):
        reason = why_broken(path)
        if reason is None:
            return path, skipped
        skipped.append(f"skipped {shown(path)}: it {reason}")
    if skipped:
        raise UserError(
            f"no whole checkpoint in {shown(output_dir)} ({'; '.join(skipped)}): "
            "bring one back, or start anew in another folder"
        )
    return None, []


def remove_old_checkpoints(output_dir: Path, step: int, keep: int | None) -> None:
    """After the checkpoint of `step`: keep the `keep` newest whole ones up to it, None keeps all.

    What is older than these goes, broken ones too; a broken one among them stays and does not count.
    """
    whole = 0
    for path in reversed([path for path in _candidates(output_dir) if step_of(path) <= step]):
        if keep is not None and whole >= keep:
            _remove(path)
        elif keep is not None:
            whole += why_broken(path) is None


def remove_checkpoints(output_dir: Path) -> None:
    """All of them, whole or not, for a new run that was asked to replace an earlier one."""
    for path in reversed(_candidates(output_dir, unfinished=True)):
        _remove(path)


def check_same_run(
    checkpoint: Path,
    config: dict[str, Any],
    may_differ: frozenset[str],
    canonical: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> None:
    """Raise UserError when the checkpoint comes from settings that make another run, or is past its end.

    canonical: puts the checkpoint's settings into the form of `config`, where one thing has several names.
    """
    path = checkpoint / CONFIG_FILE
    try:
        with one_line("read", path):
            before = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{shown(path)} is not valid JSON: give another checkpoint") from error
    if not isinstance(before, dict):
        raise UserError(f"{shown(path)} holds no settings: give another checkpoint")
    before = canonical(before)
    changed = [k for k in sorted(config) if k not in may_differ and before.get(k) != config[k]]
    if changed:
        listed = ", ".join(f"{key} was {shown(repr(before.get(key)))}, is {config[key]!r}" for key in changed)
        raise UserError(f"cannot resume {shown(checkpoint)}: {listed}; give the same settings or start anew")
    number = re.fullmatch(r"\.?checkpoint-(\d+)(\.new)?", checkpoint.name)
    if number and saved_step(checkpoint) != int(number[1]):
        raise UserError(f"cannot resume {shown(checkpoint)}: its state is of step {saved_step(checkpoint)}")
    if saved_step(checkpoint) > config["max_train_steps"]:
        raise UserError(
            f"cannot resume {shown(checkpoint)}: it is beyond --max_train_steps {config['max_train_steps']}"
        )


def step_of(checkpoint: Path) -> int:
    return int(re.search(r"checkpoint-(\d+)", checkpoint.name)[1])


def _candidates(output_dir: Path, unfinished: bool = False) -> list[Path]:
    """Every checkpoint, whole or not, oldest first.

    Among them those that were sealed and not yet in their place when the run was killed; unfinished: also
    those that were not sealed.
    """
    if not output_dir.is_dir():
        return []
    with one_line("read", output_dir):
        paths = list(output_dir.iterdir())
    placed = [path for path in paths if re.fullmatch(r"checkpoint-\d+", path.name)]
    staged = [path for path in paths if re.fullmatch(r"\.checkpoint-\d+\.new", path.name)]
    staged = [path for path in staged if unfinished or (path / MANIFEST).is_file()]
    return sorted(placed + staged, key=lambda path: (step_of(path), path in staged))


def settle(output_dir: Path) -> None:
    """Puts in its place what was sealed when the run was killed, and removes what was not."""
    for staged in output_dir.glob(".checkpoint-*.new"):
        if _compare(staged) is None:  # an unreadable disk raises: what may be whole is not removed
            _put_in_place(staged)
        else:
            remove(staged)


def _put_in_place(staged: Path) -> None:
    """A folder cannot be renamed onto another, so the older one goes first; `staged` counts already."""
    place = staged.with_name(f"checkpoint-{step_of(staged)}")
    remove(place)
    os.rename(staged, place)
    sync(place.parent)


def _remove(checkpoint: Path) -> None:
    with one_line("remove", checkpoint):
        if checkpoint.is_dir() and not checkpoint.is_symlink():
            (checkpoint / MANIFEST).unlink(missing_ok=True)  # first: half a checkpoint is none
        remove(checkpoint)


def _read_manifest(content: bytes) -> dict[str, dict[str, Any]] | None:
    """file name -> {"bytes", "sha256"}; None unless it reads, byte for byte, as `seal` would write it."""
    try:
        manifest = json.loads(content)
        files = manifest["files"]
        if (
            type(manifest["format"]) is not int
            or manifest["format"] != 1
            or not {STATE_FILE, CONFIG_FILE} <= files.keys()
        ):
            return None
        for name, entry in files.items():
            plain = Path(name).name == name and name not in ("", ".", "..")
            if not plain or entry.keys() != {"bytes", "sha256"} or type(entry["bytes"]) is not int:
                return None
        return files if content == _dump(manifest).encode() else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _dump(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, indent=2) + "\n"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

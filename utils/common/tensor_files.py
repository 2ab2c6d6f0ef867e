"""Tensors in safetensors and pickle files: written atomically, read with one line for a damaged file."""

import io
import json
import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from utils.common.errors import UserError, is_out_of_memory, short, system_error
from utils.common.files import shown, write_atomically


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file; metadata defaults to {"format": "pt"}, which transformers asks for."""

    def write(partial: Path) -> None:
        contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        with system_errors():
            save_file(contiguous, partial, metadata=metadata or {"format": "pt"})

    write_atomically(path, write)


@contextmanager
def system_errors() -> Iterator[None]:
    """What safetensors reports of a full disk, "… (os error 28)", becomes the OSError that it stands for."""
    try:
        yield
    except SafetensorError as error:
        number = system_error(error)
        raise OSError(number, os.strerror(number)) if number is not None else error from error


def write_pickle(path: Path, value: Any) -> None:
    """What torch.save writes; in memory first, for its own writer hides the system's error."""
    buffer = io.BytesIO()
    torch.save(value, buffer)

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            file.write(buffer.getbuffer())

    write_atomically(path, write)


def read_dictionary(path: Path) -> dict[str, Any]:
    """The dictionary in a .safetensors file or, by any other name, in a pickled one. Errors as of these."""
    return read_tensors(path) if path.suffix == ".safetensors" else read_pickle(path, "cpu")


def read_pickle(path: Path, device: torch.device | str | None = None) -> dict[str, Any]:
    """A pickled dictionary; only tensors, numbers, texts and containers are unpickled.

    Raises UserError for a file that is missing, damaged or something else.
    """
    try:
        value = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own message advises to load unsafely
        refused = re.search(r"(?:GLOBAL|class|type) ([\w.]+)", str(error))
        why = f"it holds Python objects ({refused[1]}), which could run code" if refused else "it is damaged"
        raise UserError(f"cannot read {shown(path)}: {why}, give another") from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(value, dict):
        raise UserError(f"{shown(path)} holds a {type(value).__name__}, not a dictionary; give another")
    return value


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Raises UserError for a file that is missing or not safetensors."""
    try:
        path.open("rb").close()  # safetensors says of whatever the system refuses that there is no such file
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def read_metadata(path: Path, key: str) -> dict[str, Any]:
    """The JSON object that the file's metadata holds under `key`; the tensors are not read."""
    try:
        path.open("rb").close()  # safetensors says of whatever the system refuses that there is no such file
        with safe_open(path, framework="pt") as file:
            value = json.loads((file.metadata() or {}).get(key, "null"))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(value, dict):
        raise UserError(f"{shown(path)} is damaged: it has no {key}; give another")
    return value


def _unreadable(path: Path, error: Exception) -> Exception:
    """What to raise for a file that a library cannot read: damaged, kept from us, or too large for memory."""
    if is_out_of_memory(error):
        return error
    number = system_error(error)
    if number is not None:
        return UserError(
            f"cannot read {shown(path)}: {os.strerror(number)}; check the path and its permissions"
        )
    return UserError(f"cannot read {shown(path)}: {short(error, 150)}; it is damaged, give another")

"""A JSON file of a pretrained model, which is a folder or a Hub id, read before the model loads."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from ssl import SSLError
from threading import Thread
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError

from utils.bases.registry import BASES, base_row
from utils.bases.single_file.configuration import configuration_of
from utils.bases.single_file.recognise import is_file
from utils.common.errors import REFUSALS, UserError, in_memory, is_out_of_memory, short, system_error

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def pipeline_class(base: str | Path, revision: str | None = None) -> str:
    """The class of a base model, of its model_index.json. Raises UserError as `base_config` does."""
    return str(base_config(base, "model_index.json", revision).get("_class_name"))


def base_config(base: str | Path, name: str, revision: str | None = None) -> dict[str, Any]:
    """The JSON file `name` of a base model, which may be a single file too.

    Raises UserError as `configuration_of` and `read_config` do.
    """
    writer = "StableDiffusionPipeline.save_pretrained"
    return read_config(configuration_of(base), "base model", name, writer, revision)


def check_named_base(base: str | None, revision: str | None = None, variant: str | None = None) -> None:
    """Raises UserError as `pipeline_class` does for the base that a flag names, if it names one.

    For programs to call before they import what takes seconds: that a model is not here is said at once.
    """
    if not base:
        return
    path = base_row(base).path
    if "/" not in path and not Path(path).exists():
        known = ", ".join(BASES)
        raise UserError(
            f"base model {short(base)} is unknown: give {known}, a folder, a .safetensors file or a Hub id"
        )
    if is_file(path) and (revision or variant):
        raise UserError(f"base model {path} is a file, which has no --revision or --variant: leave them out")
    pipeline_class(path, revision)


def fetch_family(base: str, revision: str | None = None) -> None:
    """Fetches the file by which `base_row` knows the family of a Hub id that is neither a row's nor cached.

    Raises UserError as `pipeline_class` does: the settings of another family would be given silently.
    """
    path = base_row(base).path
    if (
        HUB_ID.fullmatch(path)
        and not Path(path).is_dir()
        and path not in {row.path for row in BASES.values()}
    ):
        pipeline_class(path, revision)


def read_config(
    model: str | Path,
    kind: str,
    name: str = "config.json",
    writer: str = "save_pretrained",
    revision: str | None = None,
) -> dict[str, Any]:
    """The JSON file `name` of a folder or of a Hub id (owner/name); from the Hub it is fetched if it is not
    cached, a few hundred bytes.

    kind: what the model is called in errors, e.g. "CLIP model". writer: what writes such a folder.
    Raises UserError when there is no such file, or when it is not JSON.
    """
    folder = Path(model)
    if not folder.is_dir() and folder.parent.is_dir() and folder.parent != Path("."):
        raise UserError(f"{kind} {model} is not a folder, though {folder.parent} is one: check the path")
    if folder.is_dir() and not (folder / name).is_file():
        raise UserError(f"{kind} folder {model} has no {name}; give one that {writer} wrote")
    if not folder.is_dir() and not HUB_ID.fullmatch(str(model)):
        raise UserError(f"{kind} {model} is neither an existing folder nor a Hub id of the form owner/name")
    file = folder / name if folder.is_dir() else _fetched(str(model), kind, name, revision)
    try:
        config = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        raise UserError(f"{file} is not JSON; give one that {writer} wrote") from None
    if not isinstance(config, dict):
        raise UserError(
            f"{file} is a JSON {type(config).__name__}, not an object; give one that {writer} wrote"
        )
    return config


def _fetched(model: str, kind: str, name: str, revision: str | None) -> Path:
    """A file of a model on the Hub: from the cache, else downloaded. Raises UserError if neither gives it.

    The Hub's own client tries again for half a minute or more where there is no network, so it is asked only
    once the Hub has answered.
    """
    cached = try_to_load_from_cache(model, name, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    if not hub_answers():
        raise UserError(
            f"{kind} {model} is not here, and {constants.ENDPOINT} does not answer: where it does, run "
            f"'hf download {model} --local-dir {model.partition('/')[2]}', bring the folder here, give "
            f"its path instead of {model}"
        )
    try:
        return Path(hf_hub_download(model, name, revision=revision))
    except (OSError, HfHubHTTPError):
        raise UserError(
            f"{kind} {model} is neither an existing folder nor a model that the Hub gives out; "
            "check the name, the network and your access"
        ) from None


def hub_answers(seconds: float = 3.0) -> bool:
    """Whether the Hub answers at all within the time, which bounds the look-up of its address too."""
    if constants.HF_HUB_OFFLINE:
        return False
    answers: list[bool] = []

    def ask() -> None:
        try:
            with suppress(HTTPError):  # a refusal is an answer
                urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=seconds).close()
        except URLError as error:
            if not isinstance(error.reason, SSLError):  # the Hub's client has certificates of its own
                return
        except OSError:
            return
        answers.append(True)

    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return bool(answers)


@contextmanager
def readable(kind: str, model: str | Path) -> Iterator[None]:
    """Whatever a library raises at a model's files, which may be a stranger's, becomes one line.

    kind: what the model is called in errors. Only for calls that read files: the cause may be anything.
    """
    try:
        with in_memory(f"loading {kind} {model}"):
            yield
    except Exception as error:
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        if (number := system_error(error)) in REFUSALS:
            reason = f"{os.strerror(number)}; check the path and its permissions"
            raise UserError(f"cannot read {kind} {model}: {reason}") from error
        reason = short(error, 200) or type(error).__name__
        raise UserError(
            f"{kind} {model} cannot be loaded ({reason}); it is damaged or of another kind: give another"
        ) from error

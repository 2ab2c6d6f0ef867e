"""A JSON file of a pretrained model, which is a folder or a Hub id, read before the model loads."""

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from utils.errors import UserError

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


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
    file = folder / name
    if not folder.is_dir():
        try:
            file = Path(hf_hub_download(str(model), name, revision=revision))
        except (OSError, HfHubHTTPError):
            raise UserError(
                f"{kind} {model} is neither an existing folder nor a model that the Hub gives out; "
                "check the name, the network and your access"
            ) from None
    try:
        return json.loads(file.read_text())
    except ValueError:
        raise UserError(f"{file} is not JSON; give one that {writer} wrote") from None

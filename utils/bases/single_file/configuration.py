"""The configuration of a single file: that of its family, or that of a folder beside it.

data/single_file holds the families' configurations, and the merge rules from which CLIP's vocabulary follows.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.bases.registry import REPOSITORY
from utils.bases.single_file.cache import cache_folder, made_once
from utils.bases.single_file.recognise import VELOCITY, SingleFile, is_file, single_file
from utils.common.errors import UserError
from utils.common.files import shown, write_json

DATA = REPOSITORY / "data" / "single_file"
END = "<|endoftext|>"
PADDING = {"tokenizer": END, "tokenizer_2": "!"}  # as published


def configuration_of(base: str | Path) -> str | Path:
    """A folder with the configuration files and the tokenizers of a base; of one that is a file it is made
    once in the cache, of any other it is the base itself.

    Raises UserError as `single_file` does, for a file that is not there, and where the cache cannot be
    written.
    """
    if not is_file(base):
        if str(base).endswith((".safetensors", ".ckpt")) and not os.path.isdir(base):
            raise UserError(f"base model file {shown(base)} does not exist: check the path")
        return base
    file = single_file(base)
    contents = configuration(file)
    digest = hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()[:32]
    return made_once(cache_folder() / "configurations" / digest, lambda folder: write_files(folder, contents))


def configuration(file: SingleFile) -> dict[str, Any]:
    """path in a pipeline folder -> content: JSON values, and texts of tokenizers."""
    own = json.loads((DATA / f"{file.family.name}.json").read_text(encoding="utf-8"))
    if file.configured is not None:
        return own | _beside(file, file.configured, own)
    scheduler = own["scheduler/scheduler_config.json"]
    scheduler["prediction_type"] = file.prediction
    if file.zero_snr:
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if file.family.name == "sd2" and file.prediction == VELOCITY:  # the model of 768 px, as published
        own["unet/config.json"] |= {"sample_size": 96, "upcast_attention": True}
    merges = (DATA / "merges.txt").read_text(encoding="utf-8")
    for name, padding in PADDING.items():
        if name in own["model_index.json"]:
            own |= {f"{name}/{file}": content for file, content in tokenizer_files(merges, padding).items()}
    return own


def _beside(file: SingleFile, folder: Path, own: dict[str, Any]) -> dict[str, Any]:
    """The configuration in the folder of the file's name, with the parts that the family has.

    Raises UserError for a folder of another family, and for one that lacks a part.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    if index.get("_class_name") != file.family.pipeline:
        raise UserError(
            f"{shown(file.path)} is a {file.family.title}, and {shown(folder)} is the configuration of a "
            f"{index.get('_class_name')}: give a {file.family.pipeline}'s, or rename the folder"
        )
    names = [name for name, value in own["model_index.json"].items() if isinstance(value, list) and value[0]]
    contents = {"model_index.json": own["model_index.json"] | {name: index.get(name) for name in names}}
    for name in names:
        files = [path for path in sorted((folder / name).glob("*")) if path.suffix in (".json", ".txt")]
        texts = {f"{name}/{each.name}": each for each in files if not each.name.endswith(".index.json")}
        if not texts:
            raise UserError(f"configuration folder {shown(folder)} has no {name}: copy it there")
        contents |= {place: path.read_text(encoding="utf-8") for place, path in texts.items()}
    return contents


def write_files(folder: Path, contents: dict[str, Any]) -> None:
    for place, content in contents.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        else:
            write_json(path, content)


def tokenizer_files(merges: str, padding: str) -> dict[str, Any]:
    """The files of CLIP's tokenizer, from its merge rules: 49,408 tokens, which are the bytes, the bytes that
    end a word, one for each rule, start and end of text."""
    letters = list(_letters())
    pairs = [rule.replace(" ", "") for rule in merges.splitlines()[1:]]
    vocabulary = [*letters, *(f"{each}</w>" for each in letters), *pairs, "<|startoftext|>", END]
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "bos_token": "<|startoftext|>"}
    config |= {"eos_token": END, "unk_token": END, "pad_token": padding}
    return {
        "vocab.json": {token: number for number, token in enumerate(vocabulary)},
        "merges.txt": merges,
        "tokenizer_config.json": config,
    }


def _letters() -> Iterator[str]:
    """The letter that stands for each of the 256 bytes, in the vocabulary's order: those that can be printed
    stand for themselves, the others for 256 and up."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    yield from map(chr, printed)
    yield from (chr(256 + number) for number in range(256 - len(printed)))

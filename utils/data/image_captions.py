"""Captions of single images: a `.txt` next to the image, or Hugging Face's `metadata.jsonl` of the folder."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from utils.common.errors import UserError, short
from utils.common.files import read_text, shown
from utils.common.limits import LONGEST
from utils.config.concepts import Concept

METADATA = "metadata.jsonl"


def read_captions(folder: Path, images: Iterable[Path]) -> dict[Path, tuple[str, Path]]:
    """Image -> (its caption, the file that holds it), for the images of `folder` that have one.

    `dog.txt` is the caption of `dog.jpg`; a line {"file_name": "dog.jpg", "text": "…"} of metadata.jsonl is
    another way to write it, that of Hugging Face's ImageFolder. Raises UserError for a caption that is empty
    or not UTF-8, an image with two, a line of another form, and a line of an image that is not there.
    """
    images = list(images)
    listed, metadata = _read_metadata(folder / METADATA), folder / METADATA
    if missing := sorted(listed.keys() - {path.name for path in images}):
        raise UserError(f"{shown(metadata)} names {short(missing[0])}, which is not an image of this folder")
    captions = {path: (listed[path.name], metadata) for path in images if path.name in listed}
    for path in images:
        file = path.with_suffix(".txt")
        if not file.is_file():
            continue
        if path in captions:
            raise UserError(f"{shown(path)} has a caption in {file.name} and in {METADATA}: remove one")
        captions[path] = (_checked(read_text(file), file), file)
    return captions


def _checked(text: Any, file: Path) -> str:
    """The caption in one line."""
    caption = " ".join(text.split()) if isinstance(text, str) else ""
    if not caption:
        raise UserError(f"{shown(file)} holds an empty caption: write one, or remove it")
    if len(caption) > LONGEST:
        raise UserError(
            f"{shown(file)} holds a caption of {len(caption):,} characters: give at most {LONGEST:,}"
        )
    return caption


def _read_metadata(file: Path) -> dict[str, str]:
    """File name -> caption; no entry where there is no file."""
    captions: dict[str, str] = {}
    if not file.is_file():
        return captions
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{shown(file)}, line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not JSON: write one object a line") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str) or "text" not in entry:
            raise UserError(f'{where} must be an object with "file_name" and "text"')
        if entry["file_name"] in captions:
            raise UserError(f"{where} is a second caption of {short(entry['file_name'])}: remove one")
        captions[entry["file_name"]] = _checked(entry["text"], Path(where))
    return captions


def name_subject(caption: str, concept: Concept, file: Path) -> str:
    """The caption with the concept in it: as it is if it holds the token, else in the class word's place.

    "my dog asleep" -> "my <new1> dog asleep": the first whole class word, in upper or lower case, becomes
    the concept's subject. Raises UserError, naming the file, for a caption with neither.
    """
    token, word = concept.modifier_token, concept.cls_token
    if token in caption:
        return caption
    named, count = caption, 0
    if word:
        pattern = rf"(?<!\w){re.escape(word)}(?!\w)"
        named, count = re.subn(pattern, lambda _: concept.subject, caption, count=1, flags=re.IGNORECASE)
    if not count:
        wanted = f"{token} or the class word '{word}'" if word else f"{token} (or give --cls_token)"
        raise UserError(
            f"{shown(file)}: '{short(caption)}' does not name the concept: write {wanted} into it"
        )
    return named


def class_captions(folder: Path, images: Iterable[Path], tokens: Iterable[str]) -> dict[Path, str]:
    """Image -> its own caption, for the class images of `folder` that have one.

    Raises UserError as `read_captions` does, and for a caption that names a concept, which class images do
    not show.
    """
    captions, tokens = read_captions(folder, images), list(tokens)
    for caption, file in captions.values():
        if named := [token for token in tokens if token in caption]:
            raise UserError(
                f"{shown(file)}: the caption of a class image holds {named[0]}: name the class alone"
            )
    return {path: caption for path, (caption, _) in captions.items()}


def shuffled_tags(caption: str, rng: Any) -> str:
    """The parts between commas in a random order, the first in its place: "a <new1> dog, grass, sunny"."""
    first, *rest = [part.strip() for part in caption.split(",")]
    return ", ".join([first, *rng.sample(rest, len(rest))])

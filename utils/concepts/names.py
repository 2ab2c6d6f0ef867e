"""What a token may be called, for it stands in prompts, and the name of its file in a concept's folder.

Nothing here imports torch, for flags are checked with it.
"""

import re
from collections.abc import Iterable
from typing import Any

from utils.common.errors import UserError, short
from utils.common.limits import check_file_name
from utils.learners.names import NAMES

# Names of weights files in a concept's folder, where each token has a file of its name.
OWN_FILES = frozenset(
    ("pytorch_custom_diffusion_weights", "training_state", "delta", "learned_embeds", *NAMES)
)


_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # no file names on Windows


def file_stems(tokens: Iterable[str]) -> list[str]:
    """A name for each token's file that every file system can hold: <new1> has new1.safetensors.

    Only letters, digits, _, - and inner dots are kept. Names that are then the same, whatever their case, get
    a number: <dog> and <DOG> have dog and DOG_2. The token itself is written inside the file.
    """
    stems: list[str] = []
    taken = set(OWN_FILES)
    for token in tokens:
        stem = re.sub(r"[^\w.-]+", "", token).strip(".")
        if not stem or stem.lower() in OWN_FILES or is_device(stem):
            stem = f"token_{stem}".rstrip("_")
        number, name = 1, stem
        while name.lower() in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name.lower())
        stems.append(name)
    return stems


def vector_names(token: str, count: int) -> list[str]:
    """What a tokenizer calls a token's vectors, as diffusers does: <new1>, <new1>_1, <new1>_2, …"""
    return [token, *(f"{token}_{number}" for number in range(1, count))]


def written_out(tokenizer: Any, text: str) -> str:
    """The text with each token of several vectors followed by the names of the others.

    diffusers' pipelines do the same to their prompts (`maybe_convert_prompt`), so that one word stands for
    all vectors in training, in sampling, and in an exported pipeline.
    """
    added = tokenizer.get_added_vocab()
    for token in [token for token in added if f"{token}_1" in added and token in text]:
        count = 1
        while f"{token}_{count}" in added:
            count += 1
        text = text.replace(token, " ".join(vector_names(token, count)))
    return text


def is_device(name: str) -> bool:
    """Whether Windows takes it for a device: CON, nul.txt, …"""
    return _DEVICES.fullmatch(name) is not None


def check_token(where: str, token: str, advice: str = "give a single word like <new1>") -> None:
    """Raise UserError, beginning with `where`, for a token that is not one word, or cannot name a file.

    For tokens of flags and of files alike: every path that is made of a token is made of a checked one.
    """
    check_file_name(where, token, advice, OWN_FILES, spaces=False)


def check_apart(tokens: Iterable[str], texts: Iterable[str]) -> None:
    """Raise UserError for a token inside a word of a text: "og" makes the tokenizer read "dog" as d and og.

    It finds tokens in any case. One like <new1>, whose ends are no letters, is never part of a word.
    """
    texts = list(texts)
    for token in tokens:
        before = r"(?<=\w)" if re.match(r"\w", token) else r"(?!)"
        after = r"(?=\w)" if re.search(r"\w$", token) else r"(?!)"
        inside = re.compile(f"{before}{re.escape(token)}|{re.escape(token)}{after}", re.IGNORECASE)
        for text in texts:
            if inside.search(text):
                raise UserError(
                    f"token {token} is inside a word of '{short(text)}', which would be read in pieces: "
                    "give another --modifier_token, e.g. <new1>"
                )


def check_absent(tokens: Iterable[str], what: str, text: str | None) -> None:
    """Raise UserError, beginning with `what`, for a text that holds a token, in any case, and may not."""
    for token in tokens:
        if text is not None and token.lower() in text.lower():
            raise UserError(
                f"{what} '{short(text)}' holds the token {token}: name the class alone, or give another "
                "--modifier_token, e.g. <new1>"
            )

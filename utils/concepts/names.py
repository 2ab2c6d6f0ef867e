"""What a token may be called: each has a file of its name in a concept's folder, and stands in prompts.

Nothing here imports torch, for flags are checked with it.
"""

import re
from collections.abc import Iterable

from utils.common.errors import UserError, short
from utils.common.limits import check_file_name

# Names of weights files in a concept's folder, where each token has a file of its name.
OWN_FILES = frozenset(
    "pytorch_custom_diffusion_weights training_state delta learned_embeds token_rows layer_rows "
    "mapper cross_attention_kv unet text_encoder spectral".split()
)


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

"""Prompts about trained concepts: read, and checked against what the concepts and the tokenizer know."""

import re
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from utils.bases.registry import base_row, portable
from utils.common.errors import UserError, short
from utils.common.files import read_lines
from utils.common.limits import LONGEST
from utils.concepts.names import check_apart, vector_names

if TYPE_CHECKING:
    from utils.concepts.formats import ConceptWeights


def classes_of(concepts: "Sequence[ConceptWeights]") -> dict[str, str | None]:
    """The class word that each token's concept records, None where it records none."""
    return {token: word for concept in concepts for token, word in zip_longest(concept.rows, concept.classes)}


def subjects_of(concepts: "Sequence[ConceptWeights]") -> list[str]:
    """Every token of the concepts as its method's prompts name it: '<new1> dog', or '<new1>' for the noun of
    textual inversion; the token alone where no class is recorded.

    Raises UserError when there is no token.
    """
    subjects = [
        concept.subject.format(token=token, cls=name) if name else token
        for concept in concepts
        for token, name in zip_longest(concept.rows, concept.classes)
    ]
    if not subjects:
        raise UserError("the --concept names no token to draw; give --prompt or --prompts_file")
    return subjects


def check_together(concepts: "Sequence[ConceptWeights]") -> None:
    """Raises UserError for concepts that would overwrite one another."""
    tokens = [token for concept in concepts for token in concept.rows]
    for token in tokens:
        if tokens.count(token) > 1:
            raise UserError(f"two concepts use {token}; train one of them under another --modifier_token")
    if sum(bool(concept.weights or concept.deltas) for concept in concepts) > 1:
        raise UserError(
            "more than one --concept has its own K/V, which would replace each other; train them together"
        )


def recorded_base(concepts: "Sequence[ConceptWeights]") -> str | None:
    """The one base model that the concepts were trained on, None if none says."""
    bases = sorted({base_row(concept.base).path for concept in concepts if concept.base})
    if len(bases) > 1:
        raise UserError(
            f"the concepts were trained on different base models ({', '.join(map(portable, bases))}); "
            "choose with --base"
        )
    return bases[0] if bases else None


def read_prompts(given: Sequence[str], file: Path | None) -> list[str]:
    """The prompts of the flags, then the file's lines that are not blank; each once.

    Raises UserError for a file that is missing, empty or not UTF-8, and for a prompt past 1,000 characters.
    """
    prompts = {f"--prompt {number}": prompt for number, prompt in enumerate(given, start=1)}
    if file is not None:
        prompts |= {f"{file}, line {number}": line for number, line in read_lines(file).items()}
    for place, prompt in prompts.items():
        check_length(prompt, place)
    return list(dict.fromkeys(prompts.values()))  # a repeated prompt would only repeat its images


def check_length(prompt: str, place: str) -> None:
    """Raises UserError, beginning with `place`, for a prompt that a tokenizer would take minutes to cut."""
    if len(prompt) > LONGEST:
        raise UserError(
            f"{place}: '{short(prompt)}' has {len(prompt):,} characters; a prompt has at most {LONGEST:,}"
        )


def without_token(prompts: Sequence[str], concepts: "Sequence[ConceptWeights]") -> list[str]:
    """A note for each prompt that names no token of the concepts, and so shows their class at most."""
    tokens = [token for concept in concepts for token in concept.rows]
    return [
        f"“{prompt}” lacks {' and '.join(tokens)}: it may show the class, not your subject"
        for prompt in prompts
        if tokens and not any(token.lower() in prompt.lower() for token in tokens)
    ]


def check_modifier_tokens(prompts: Sequence[str], base: str, concepts: "Sequence[ConceptWeights]") -> None:
    """Raises UserError for a <token> that neither a concept nor the base's tokenizer knows, and for one that
    stands past the tokenizer's limit.

    The tokenizer would spell an unknown one in letters and cut off a late one: images would show anything.
    """
    from utils.bases.families import family_of
    from utils.learners.token_rows import check_within_limit

    tokenizers = family_of(base).tokenizers(base)
    mentioned = {token for prompt in prompts for token in re.findall(r"<[^<>\s]+>", prompt)}
    known = [token for concept in concepts for token in concept.rows]
    for token in sorted(mentioned.difference(known)):
        if token not in tokenizers[0].get_vocab():
            raise UserError(
                f"prompt mentions {short(token)}, known are: {', '.join(known) or 'none'}; add its --concept"
            )
    names = [
        name
        for concept in concepts
        for token, row in concept.rows.items()
        for name in vector_names(token, 1 if row.ndim == 1 else len(row))
    ]
    check_apart(known, prompts)
    for tokenizer in tokenizers:
        tokenizer.add_tokens(names)
        for prompt in prompts:
            check_within_limit(tokenizer, prompt, [token for token in known if token in prompt])

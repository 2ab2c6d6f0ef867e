"""The modifier tokens' learned embedding rows, in front of a frozen text encoder.

Shapes: B phrases, L tokens, V rows of the frozen table, K modifier tokens, D text width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from utils.common.errors import UserError, short
from utils.concepts.names import written_out
from utils.learners.learner import Learner, Parameters, Tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from utils.bases.base import BaseModel


class ModifierTokens(nn.Module):
    """An input embedding whose ids V, V+1, … are K trained rows and whose other ids are the frozen table.

    The table itself is neither resized nor trained: the optimizer holds K·D numbers, and no other token moves
    (the official code trains the whole table, whose rows then shrink by weight decay). The rows stay float32
    whatever the table's dtype, because half precision swallows most updates at the usual learning rates.
    """

    def __init__(self, table: nn.Embedding, rows: Tensor):
        """table: (V, D), frozen here; rows: (K, D) start values, copied as float32."""
        super().__init__()
        assert rows.ndim == 2 and rows.shape[1] == table.embedding_dim, f"rows {tuple(rows.shape)}"
        # The table is registered first: a text encoder reports the dtype of its first parameter as its own.
        self.table = table.requires_grad_(False)
        self.learned = nn.Embedding.from_pretrained(rows.detach().float().clone(), freeze=False)

    @property
    def rows(self) -> nn.Parameter:
        """The trained parameter, (K, D) float32; row k belongs to id V + k."""
        return self.learned.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids: (..., L) in [0, V + K) -> (..., L, D) in the table's dtype."""
        vocabulary = self.table.num_embeddings
        frozen = self.table(input_ids.clamp(max=vocabulary - 1))  # (..., L, D)
        learned = self.learned((input_ids - vocabulary).clamp(min=0)).to(frozen.dtype)  # (..., L, D)
        return torch.where((input_ids >= vocabulary).unsqueeze(-1), learned, frozen)


def check_tokens(
    tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[str], words: Sequence[str], start: str = "piece"
) -> list[list[int]]:
    """Checks that every modifier token is new and every first word is of the vocabulary; changes nothing.

    start: how a word names the token's first row, see `first_ids`. Returns, in order, the ids whose mean row
    each token starts from. Raises UserError otherwise, also for repetitions, blanks in a token and counts
    that differ.
    """
    if len(tokens) != len(words):
        raise UserError(f"{len(tokens)} modifier tokens, {len(words)} initializer tokens: give one each")
    if len({token.lower() for token in tokens}) < len(tokens):  # CLIP's tokenizer lowers the case
        raise UserError(
            f"modifier tokens {'+'.join(tokens)} repeat: name each concept apart, e.g. <new1>+<new2>"
        )
    for token in tokens:
        if token.split() != [token]:
            raise UserError(
                f"modifier token {token!r} is empty or holds a blank: write one word, e.g. <new1>"
            )
        if _is_known(tokenizer, token):
            raise UserError(
                f"modifier token {token!r} is already in the vocabulary: choose a new one, e.g. <new1>"
            )
    return [first_ids(tokenizer, word, start) for word in words]


def check_within_limit(tokenizer: "PreTrainedTokenizerBase", prompt: str, tokens: list[str]) -> None:
    """Raises UserError when the tokenizer, which has the tokens, would cut one of them off a long prompt."""
    whole = written_out(tokenizer, prompt)
    input_ids = tokenizer(whole, max_length=tokenizer.model_max_length, truncation=True).input_ids
    for token in tokens:
        last = written_out(tokenizer, token).split()[-1]  # of the token's vectors
        if tokenizer.convert_tokens_to_ids(last) not in input_ids:
            raise UserError(
                f"'{short(prompt)}' is cut at {tokenizer.model_max_length} tokens, before {token}; "
                "shorten it, or move the token forward"
            )


def install(
    text_encoder: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    tokens: Sequence[str],
    words: Sequence[str],
    start: str = "piece",
) -> ModifierTokens:
    """Freezes the text encoder, adds K tokens to the tokenizer, puts their rows before the table.

    Each row starts from its word (see `first_ids`). Cast the text encoder before, not after: the rows are
    float32, and trainable. Raises UserError for unusable tokens (see check_tokens) or a text encoder that
    does not fit the tokenizer.
    """
    starts = check_tokens(tokenizer, tokens, words, start)
    table = text_encoder.get_input_embeddings()
    assert isinstance(table, nn.Embedding), (
        f"input embedding is {type(table).__name__}: tokens installed twice?"
    )
    if len(tokenizer) != table.num_embeddings:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens, the text encoder {table.num_embeddings} rows: "
            "start from an unmodified base model"
        )
    tokenizer.add_tokens(list(tokens))
    ids = tokenizer.convert_tokens_to_ids(list(tokens))
    assert ids == list(range(table.num_embeddings, len(tokenizer))), f"unexpected ids {ids} for {tokens}"

    rows = torch.stack([table.weight[each].mean(dim=0) for each in starts])  # (K, D)
    modifier_tokens = ModifierTokens(table, rows)
    text_encoder.requires_grad_(False)
    modifier_tokens.rows.requires_grad_(True)
    text_encoder.set_input_embeddings(modifier_tokens)
    return modifier_tokens


def _is_known(tokenizer: "PreTrainedTokenizerBase", token: str) -> bool:
    """Whether the tokenizer already keeps this word whole, in any case, or has an entry of this spelling."""
    ids = tokenizer(token, add_special_tokens=False).input_ids
    return token in tokenizer.get_vocab() or (len(ids) == 1 and ids[0] not in tokenizer.all_special_ids)


def first_ids(tokenizer: "PreTrainedTokenizerBase", word: str, start: str) -> list[int]:
    """The ids whose mean row a token starts from: of a word in several pieces, all of them.

    start "piece": the entry spelled exactly so, else the word. Quirk kept from the official code: CLIP's bare
    entries are pieces that a word continues. "ktn" is 42170, though the word ktn is read as k + tn, and "pll"
    is 47629, not the word's own 25266. For a spelling that is no entry the official code took EOS. start
    "word", "class": as prompts read the word (DreamBooth's sks is 48136) or the class.
    Raises UserError for a word that is empty or has a piece which the vocabulary lacks.
    """
    if start == "piece" and (own := tokenizer.get_vocab().get(word)) is not None:
        ids = [own]
    else:
        ids = tokenizer(word, add_special_tokens=False).input_ids
    if not ids or any(each in tokenizer.all_special_ids for each in ids):
        raise UserError(
            f"initializer token {short(word)!r} is not in the vocabulary: try "
            + ("sks, a rare word" if start == "word" else "ktn, pll or ucd, or a common word")
        )
    return ids


def attach(base: "BaseModel") -> Parameters:
    """The rows that base.add_tokens has installed, (K, D) in each text encoder."""
    for rows in base.rows.values():
        rows.requires_grad_(True)
    return dict(base.rows)


def pack(base: "BaseModel", parameters: Parameters) -> Tensors:
    """The rows; utils/concepts/save.py writes a file for each token."""
    return dict(parameters)


def merge(base: "BaseModel", tensors: Tensors, path: Path) -> dict[str, Tensors]:
    """No weight of the base changes: utils/concepts/load.py adds the tokens."""
    return {}


LEARNER = Learner(
    "token_rows",
    "rows",
    attach,
    pack,
    merge,
    "token_learning_rate",
    text=True,
    exact=True,
    tokens_only=True,
    plain="the new word",
    layout="tokens",
)

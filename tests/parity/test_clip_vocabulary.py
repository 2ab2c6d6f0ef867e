"""The modifier tokens on CLIP's real vocabulary, the one SD 1.5 uses."""

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from tests.clip_vocabulary import write_clip_tokenizer
from utils.common.errors import UserError
from utils.config.methods import METHODS
from utils.learners.token_rows import check_tokens, first_ids


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip_tokenizer")
    write_clip_tokenizer(folder)
    return folder


@pytest.fixture
def tokenizer(folder) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder)


def test_initialisers_are_the_official_ones(tokenizer):
    ids = check_tokens(tokenizer, ["<new1>", "<new2>", "<new3>"], ["ktn", "pll", "ucd"])
    assert ids == [[42170], [47629], [44746]]
    assert len(tokenizer) == 49408


def test_every_methods_initial_words_are_in_the_vocabulary(tokenizer):
    """CLIP reads ktn as k + tn: it can start a row as a piece, not as a word."""
    for row in METHODS.values():
        if row.start != "class":
            assert [len(first_ids(tokenizer, word, row.start)) for word in row.initializer.split("+")] == [
                1
            ] * 3
    assert first_ids(tokenizer, "sks", "word") == [48136]
    assert [tokenizer.decode(each) for each in first_ids(tokenizer, "ktn", "word")] == ["k", "tn"]


def test_a_modifier_token_outranks_eos(tokenizer):
    tokenizer.add_tokens(["<new1>"])
    assert tokenizer.eos_token_id == 49407
    ids = tokenizer("a photo of a <new1> dog").input_ids
    assert ids == [49406, 320, 1125, 539, 320, 49408, 1929, 49407]


def test_an_initialiser_that_is_no_entry_is_its_pieces_instead_of_eos(tokenizer):
    (ids,) = check_tokens(tokenizer, ["<new1>"], ["zqxw"])
    assert ids == tokenizer("zqxw", add_special_tokens=False).input_ids
    assert len(ids) > 1 and tokenizer.eos_token_id not in ids


def test_an_existing_word_is_refused_as_a_modifier_token(tokenizer):
    with pytest.raises(UserError, match="'sks'"):
        check_tokens(tokenizer, ["sks"], ["ktn"])

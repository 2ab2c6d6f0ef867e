"""The modifier tokens on CLIP's real vocabulary, the one SD 1.5 uses.

Taken from the tokenizer folder named by the environment variable CLIP_TOKENIZER, else from open_clip_torch.
"""

import gzip
import importlib.util
import json
import os
from pathlib import Path

import pytest
from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from utils.errors import UserError
from utils.modifier_tokens import check_tokens


def write_open_clip_tokenizer(merges_file: Path, folder: Path) -> None:
    """A transformers tokenizer folder from CLIP's merges: bytes, word-ending bytes, merges, specials."""
    merges = gzip.decompress(merges_file.read_bytes()).decode().split("\n")[1:48895]
    letters = list(bytes_to_unicode().values())
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), *(m.replace(" ", "") for m in merges)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    if given := os.environ.get("CLIP_TOKENIZER"):
        return Path(given)
    open_clip = importlib.util.find_spec("open_clip")
    if open_clip is None:
        pytest.skip("CLIP's vocabulary: set CLIP_TOKENIZER to a tokenizer folder or install open_clip_torch")
    folder = tmp_path_factory.mktemp("clip_tokenizer")
    write_open_clip_tokenizer(Path(open_clip.origin).parent / "bpe_simple_vocab_16e6.txt.gz", folder)
    return folder


@pytest.fixture
def tokenizer(folder) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder)


def test_initialisers_are_the_official_ones(tokenizer):
    ids = check_tokens(tokenizer, ["<new1>", "<new2>", "<new3>"], ["ktn", "pll", "ucd"])
    assert ids == [42170, 47629, 44746]
    assert len(tokenizer) == 49408


def test_a_modifier_token_outranks_eos(tokenizer):
    tokenizer.add_tokens(["<new1>"])
    assert tokenizer.eos_token_id == 49407
    ids = tokenizer("a photo of a <new1> dog").input_ids
    assert ids == [49406, 320, 1125, 539, 320, 49408, 1929, 49407]


def test_an_unknown_initialiser_is_refused_instead_of_becoming_eos(tokenizer):
    with pytest.raises(UserError, match="'zqxw'"):
        check_tokens(tokenizer, ["<new1>"], ["zqxw"])


def test_an_existing_word_is_refused_as_a_modifier_token(tokenizer):
    with pytest.raises(UserError, match="'sks'"):
        check_tokens(tokenizer, ["sks"], ["ktn"])

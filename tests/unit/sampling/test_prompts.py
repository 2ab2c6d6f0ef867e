"""Prompts from flags and files, and the base that concepts record."""

import re

import pytest
import torch

from utils.bases.registry import BASES
from utils.common.errors import UserError
from utils.concepts.weights import ConceptWeights
from utils.sampling.prompts import read_prompts, recorded_base, subjects_of


def test_prompts_of_flags_and_file_each_once(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffa dog\n\n  a cat \r\na dog\n", encoding="utf-8")
    assert read_prompts(("a cow", "a cat"), file) == ["a cow", "a cat", "a dog"]
    assert read_prompts((), None) == []
    assert read_prompts(("x" * 1000,), None) == ["x" * 1000]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a dog\ndr\xf6g", "is not UTF-8 text (byte 8): save it as UTF-8"),
        (b"\xff\xfea\x00", "is not UTF-8 text (byte 0)"),
        (b" \n\n", "is empty; write one prompt per line"),
        (b"a dog\n\n" + b"x" * 10_000_000, f"line 3: '{'x' * 59}…' has 10,000,000 characters"),
    ],
)
def test_a_file_that_holds_no_prompts_is_one_short_line(content, words, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(words)) as mistake:
        read_prompts((), file)
    assert "\n" not in str(mistake.value) and len(str(mistake.value)) < 250


def test_a_prompt_flag_of_a_thousand_characters_is_the_longest():
    with pytest.raises(UserError, match="--prompt 2: 'yyy.*…' has 1,001 characters"):
        read_prompts(("a dog", "y" * 1001), None)


def test_one_base_written_differently_is_one_base():
    toon = [ConceptWeights(base=base) for base in ("toon", "data/toon/sd", BASES["toon"].path, None)]
    assert recorded_base(toon) == BASES["toon"].path and recorded_base(toon[3:]) is None
    with pytest.raises(UserError, match=r"different base models \(data/toon/sd, owner/other\)"):
        recorded_base([*toon, ConceptWeights(base="owner/other")])


def test_a_subject_is_named_as_its_method_trained_it():
    rows = {"<new1>": torch.ones(2), "<new2>": torch.ones(2)}
    pair = ConceptWeights(rows=rows, classes=("teddy bear", None))
    inversion = ConceptWeights(rows={"<new3>": torch.ones(2)}, classes=("dog",), subject="{token}")
    assert subjects_of([pair, inversion]) == ["<new1> teddy bear", "<new2>", "<new3>"]
    with pytest.raises(UserError, match="names no token"):
        subjects_of([ConceptWeights()])

"""Where tokens may stand: apart from words, and not in what names the class alone."""

import pytest

from utils.common.errors import UserError
from utils.concepts.names import check_absent, check_apart
from utils.config.train_config import TrainConfig


@pytest.mark.parametrize(
    ("token", "text"),
    [
        ("og", "a og dog"),
        ("do", "a do dog"),
        ("OG", "my dog"),
        ("og", "My DOG"),
        ("x1", "a x1y"),
        ("ä", "Bär"),
    ],
)
def test_a_token_inside_a_word_is_refused(token: str, text: str):
    with pytest.raises(UserError, match=f"token {token} is inside a word of '{text}', which would"):
        check_apart([token], ["a cat", text])


@pytest.mark.parametrize(
    ("token", "text"),
    [
        ("<new1>", "a <new1> dog"),
        ("<new1>", "a<new1>dog"),
        ("sks", "a sks, dog"),
        ("og", "og-dig"),
        ("a.b", "a.b a"),
    ],
)
def test_a_token_apart_is_taken(token: str, text: str):
    check_apart([token], [text])


def test_what_names_the_class_alone_holds_no_token():
    for word in ("dog", "OG", "a og cat"):
        with pytest.raises(UserError, match=f"--cls_token '{word}' holds the token og: name the class alone"):
            check_absent(["<x>", "og"], "--cls_token", word)
    check_absent(["og"], "--cls_token", None)
    check_absent(["og"], "--cls_token", "cat")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"cls_token": "dog"}, "--cls_token 'dog' holds the token og"),
        (
            {"cls_token": "cat", "instance_prompt": "og cat, no dog"},
            "inside a word of 'og cat, no dog'",
        ),
        ({"cls_token": "cat", "instance_prompt": "my fog"}, "inside a word of 'my fog'"),
        (
            {"cls_token": "cat", "validation_prompt": "og cat, my dog"},
            "inside a word of 'og cat, my dog'",
        ),
        (
            {"cls_token": "cat", "class_prompt": "a og cat", "with_prior_preservation": True},
            "class_prompt 'a og cat' holds the token og",
        ),
    ],
)
def test_a_training_with_a_token_inside_words_is_refused(flags: dict, message: str):
    with pytest.raises(UserError, match=message):
        TrainConfig(instance_data_dir="images", modifier_token="og", **flags).concepts()


def test_of_two_concepts_the_token_of_one_is_not_in_the_class_of_the_other(tmp_path):
    (tmp_path / "list.json").write_text('[{"instance_data_dir": "a"}, {"instance_data_dir": "b"}]')
    tokens = {"modifier_token": "arn+<b>", "cls_token": "dog+barn", "initializer_token": "ktn+pll"}
    with pytest.raises(UserError, match="--cls_token 'barn' holds the token arn"):
        TrainConfig(concepts_list=str(tmp_path / "list.json"), **tokens).concepts()

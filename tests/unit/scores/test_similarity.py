"""The measures: known answers, and each definition against a few plain lines."""

import math

import pytest
import torch
import torch.nn.functional as F

from utils.common.errors import UserError
from utils.scores.similarity import (
    clip_i,
    clip_t,
    dino_i,
    div,
    drift,
    mean_similarity,
    pres,
    with_class,
    without_modifier,
)

X, Y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
DIAGONAL = (X + Y) / math.sqrt(2)


def directions(count: int, seed: int, width: int = 5) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("measure", [clip_i, dino_i, pres])
def test_similarity_to_the_real_images_has_known_answers(measure):
    assert measure(X, X) == 1
    assert measure(X, Y) == 0
    assert measure(X, -X) == -1
    assert measure(torch.cat([X, Y]), X) == 0.5  # all pairs, not the best one
    assert measure(X, torch.cat([X, Y, Y, Y])) == 0.25
    assert measure(torch.cat([DIAGONAL, X]), Y) == pytest.approx(math.sqrt(0.5) / 2)


def test_similarity_is_the_mean_over_all_pairs():
    generated, real = directions(4, seed=0), directions(3, seed=1)
    cosines = [[float(a @ b) for b in real] for a in generated]
    each = [sum(row) / 3 for row in cosines]
    assert mean_similarity(generated, real).tolist() == pytest.approx(each)
    assert clip_i(generated, real) == pytest.approx(sum(each) / 4)
    assert clip_i(generated, real) == pytest.approx(clip_i(real, generated))


def test_drift_is_half_the_cosine_distance_of_pairs():
    assert drift(X, X) == 0 and drift(X, -X) == 1 and drift(torch.cat([X, Y]), torch.cat([X, X])) == 0.25
    tuned, base = directions(4, seed=0), directions(4, seed=1)
    expected = sum((1 - float(a @ b)) / 2 for a, b in zip(tuned, base, strict=True)) / 4
    assert drift(tuned, base) == pytest.approx(expected)


def test_no_images_have_no_score():
    for generated, real in ((X[:0], X), (X, X[:0]), (X, directions(1, seed=0))):
        with pytest.raises(AssertionError):
            clip_i(generated, real)


def test_clip_t_is_the_raw_cosine_of_each_pair():
    pictures, texts = torch.cat([X, X, X, DIAGONAL]), torch.cat([X, Y, -X, Y])
    expected = [1, 0, -1, math.sqrt(0.5)]  # neither clipped at 0 nor times 2.5
    assert clip_t(pictures, texts).tolist() == pytest.approx(expected)
    with pytest.raises(AssertionError):
        clip_t(pictures, X)


def test_div_has_known_answers():
    assert div(torch.cat([DIAGONAL] * 3), ["a dog"] * 3) == pytest.approx(0, abs=1e-6)
    assert div(torch.cat([X, Y]), ["a dog"] * 2) == 1
    assert div(torch.cat([X, -X]), ["a dog"] * 2) == 2
    # Three pairs at 0, 1 and 1.
    assert div(torch.cat([X, X, Y]), [0, 0, 0]) == pytest.approx(2 / 3)


def test_div_compares_images_of_one_group_only_and_weighs_groups_alike():
    features = torch.cat([X, Y, X, Y, Y, Y])
    groups = [
        ("one", "a dog"),
        ("two", "a dog"),
        ("one", "a dog"),
        ("two", "a dog"),
        ("two", "a dog"),
        "alone",
    ]
    assert div(features, groups) == pytest.approx(0, abs=1e-6)
    # One group's only pair lies 1 apart, the other's three pairs 0: the mean of 1 and 0.
    assert div(torch.cat([X, Y, X, X, X]), [0, 0, 1, 1, 1]) == pytest.approx(0.5)


def test_div_is_the_mean_over_pairs():
    features = directions(5, seed=2)
    pairs = [1 - float(features[i] @ features[j]) for i in range(5) for j in range(i)]
    assert div(features, ["a dog"] * 5) == pytest.approx(sum(pairs) / 10)


def test_div_of_single_images_is_refused():
    with pytest.raises(UserError, match="two or more of the same prompt"):
        div(torch.cat([X, Y]), ["a dog", "a cat"])


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        ("a photo of a <new1> dog on the beach", "a photo of a dog on the beach"),
        ("a <new1> dog and a <new2> barn", "a dog and a barn"),
        ("<new1>", ""),
        ("a <new1>, in the snow", "a, in the snow"),
        ("a dog", "a dog"),
        ("a <new10> dog", "a <new10> dog"),
        ("a sks dog asks", "a dog asks"),
    ],
)
def test_without_modifier_drops_the_tokens_and_nothing_else(prompt, plain):
    assert without_modifier(prompt, ["<new1>", "<new2>", "sks"]) == plain


@pytest.mark.parametrize(
    ("prompt", "worded"),
    [
        ("a photo of a <new1> dog on the beach", "a photo of a dog on the beach"),
        ("a photo of a <new1> on the beach", "a photo of a dog on the beach"),
        ("<new1>", "dog"),
        ("a <new1>, in the snow", "a dog, in the snow"),
        ("a <new1> white dog", "a white dog"),
        ("a <new1> Dog", "a Dog"),
        ("a <new1> next to a dog", "a dog next to a dog"),
        ("a <new1> and a dog", "a dog and a dog"),
        ("a <new1> doghouse", "a dog doghouse"),
        ("a <new1> dog hugging a <new2> teddy bear", "a dog hugging a teddy bear"),
        ("a <new1> hugging a <new2>", "a dog hugging a teddy bear"),
        ("a <new2> <new1> dog", "a teddy bear dog"),
        ("a red <new2> bear", "a red teddy bear bear"),
        ("a sks cat asks", "a cat asks"),
        ("a cat", "a cat"),
    ],
)
def test_with_class_puts_the_class_word_in_the_tokens_place_once(prompt, worded):
    assert with_class(prompt, {"<new1>": "dog", "<new2>": "teddy bear", "sks": "cat"}) == worded

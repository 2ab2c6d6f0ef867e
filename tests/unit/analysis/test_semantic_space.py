"""Distances between phrases, and the contexts of phrase sets."""

import pytest
import torch

from utils.analysis import semantic_space as space
from utils.analysis.conditional_spread import contexts_for, phrase_set
from utils.bases.families import load_base
from utils.common.errors import UserError
from utils.losses.spl import cosine_distance


@pytest.fixture
def base(tiny_base):
    return load_base(str(tiny_base), torch.device("cpu"))


def test_a_phrase_is_at_distance_0_of_itself_and_1_of_what_is_orthogonal(base):
    dog = space.phrase_features(base, "a photo of a dog")
    assert space.distance(dog, dog) == 0.0
    cat = space.phrase_features(base, "a photo of a cat")
    assert space.distance(dog, cat) == space.distance(cat, dog) == cosine_distance(dog[0], cat[0]).item() > 0
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert space.distance([one], [other]) == pytest.approx(1)
    assert space.distance([one, other], [one]) == pytest.approx(0.5)  # layers with states of their own


def test_a_token_that_starts_from_its_class_begins_at_distance_0(base):
    dog = space.phrase_features(base, "a photo of a dog")
    base.add_tokens(["<new1>"], ["dog"], "class")
    assert space.distance(space.phrase_features(base, "a photo of a <new1>"), dog) == 0.0
    assert space.distance(space.phrase_features(base, "a photo of a <new1> dog"), dog) > 0


def test_contexts_are_words_that_the_base_keeps_whole_and_the_same_every_time(base):
    contexts = contexts_for(base.tokenizer, ["dog"], 12, seed=1)
    assert 8 <= len(contexts) <= 12 and len(set(contexts)) == len(contexts)
    known = set(base.tokenizer.get_vocab())
    for context in contexts:
        assert context.count("{}") == 1
        assert all(f"{word}</w>" in known for word in context.split() if word != "{}")
    assert contexts == contexts_for(base.tokenizer, ["dog"], 12, seed=1)
    assert contexts != contexts_for(base.tokenizer, ["dog"], 12, seed=2)
    features = phrase_set(base, contexts, "dog")
    assert features.shape == (len(contexts), 32)
    ids = base.tokenize([contexts[3].format("dog")])
    expected = base.features(base.encode(ids), ids)[0][0].double().detach().numpy()
    assert features[3] == pytest.approx(expected, abs=1e-5)


def test_a_base_that_knows_no_context_is_refused(base):
    class Letters:
        model_max_length = 24

        def __call__(self, text, add_special_tokens):
            return type("Ids", (), {"input_ids": list(text)})

    with pytest.raises(UserError, match="keeps whole the words of 0 contexts"):
        contexts_for(Letters(), ["dog"], 12, seed=1)

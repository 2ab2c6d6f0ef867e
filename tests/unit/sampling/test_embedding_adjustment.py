"""Test-time embedding adjustment: norm, angle, places, and what it leaves alone."""

import pytest
import torch
import torch.nn.functional as F

from utils.bases import as_base, load_pipeline
from utils.common.errors import UserError
from utils.concepts.load import load_concept
from utils.concepts.save import save_concept
from utils.sampling.embedding_adjustment import adjust, adjustment, turn
from utils.sampling.images import sample
from utils.sampling.settings import check_rotation

CLASSES = {"<new1>": "dog"}


@pytest.fixture
def pipeline(tiny_base, tmp_path):
    pipeline = load_pipeline(tiny_base, "cpu", "fp32")
    row = torch.randn(32, generator=torch.Generator().manual_seed(0))
    save_concept(tmp_path / "concept", {}, {"<new1>": row}, classes=["dog"], parts={})
    load_concept(pipeline, tmp_path / "concept" / "new1.safetensors")
    return pipeline


def test_turning_is_the_published_formula():
    """Two vectors at a right angle, lengths 2 and 5: rho 1/3 of the angle, alpha 1/2 of the length."""
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 5.0])
    expected = 3.5 * torch.tensor([3**0.5 / 2, 0.5])
    torch.testing.assert_close(turn(a, b, 1 / 3, 0.5), expected)
    torch.testing.assert_close(
        turn(a, 4 * a, 0.3, 0.5), torch.tensor([5.0, 0.0])
    )  # no angle: the length alone
    torch.testing.assert_close(turn(a, b, 0.0, 0.0), a)
    torch.testing.assert_close(turn(a, b, 1.0, 1.0), b)


def test_every_position_is_turned_towards_the_class_prompts(pipeline):
    prompts = ["a photo of a <new1> dog on the beach", "a photo of a dog"]
    states = as_base(pipeline).text_states(prompts)
    target = as_base(pipeline).text_states(["a photo of a dog on the beach"])[0]
    adjusted = adjust(pipeline, prompts, states, CLASSES, 0.2, 0.5)
    assert torch.equal(adjusted[1], states[1])  # names no concept
    changed = (adjusted[0] != states[0]).any(dim=-1)
    assert changed[5:].all()  # BOS a photo of a <new1>: the token, what follows, EOS and padding
    torch.testing.assert_close(adjusted[0, :5], states[0, :5])  # the same in both prompts
    for place in range(5, len(target)):
        old, new, wanted = states[0, place], adjusted[0, place], target[place]
        torch.testing.assert_close(new.norm(), (old.norm() + wanted.norm()) / 2)
        torch.testing.assert_close(angle(old, new), 0.2 * angle(old, wanted), rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(adjust(pipeline, prompts, states, CLASSES, 1.0, 1.0)[0], target)


def angle(x, y):
    return torch.arccos(F.cosine_similarity(x, y, dim=0).clamp(-1, 1))


def test_a_token_that_stands_for_the_noun(pipeline):
    states = as_base(pipeline).text_states(["a <new1> on the beach"])
    target = as_base(pipeline).text_states(["a dog on the beach"])
    torch.testing.assert_close(adjust(pipeline, ["a <new1> on the beach"], states, CLASSES, 1.0, 1.0), target)


def test_of_a_row_alone_the_row_is_turned(pipeline):
    tokenizer, table = pipeline.tokenizer, pipeline.text_encoder.get_input_embeddings().weight
    own, word = (tokenizer.convert_tokens_to_ids(each) for each in ("<new1>", "dog</w>"))
    before = table.detach().clone()
    assert adjustment(pipeline, CLASSES, ["<new1>"], 0.2, 0.5) is None  # text states stay as they are
    torch.testing.assert_close(table[own], turn(before[own], before[word], 0.2, 0.5))
    others = [i for i in range(len(table)) if i != own]
    assert torch.equal(table[others], before[others]) and not torch.equal(table[own], before[own])


def test_sampling_takes_it(pipeline):
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "eta": 0.0}
    plain, turned = (
        next(sample(pipeline, ["a <new1> dog"], [0], **settings, adjust=each))
        for each in (None, adjustment(pipeline, CLASSES, [], 0.5))
    )
    assert plain.tobytes() != turned.tobytes()


@pytest.mark.parametrize(
    ("classes", "rotation", "norm", "words"),
    [
        (CLASSES, 1.5, 0.5, "--embedding_adjustment 1.5: give a share of the angle"),
        (CLASSES, 0.2, 1.5, "--embedding_adjustment_norm 1.5: give a share of the length"),
        (CLASSES, None, 0.5, "--embedding_adjustment_norm has no effect without"),
        ({"<new1>": None}, 0.5, 0.5, "--embedding_adjustment needs a class for <new1>"),
    ],
)
def test_mistakes_are_named(classes, rotation, norm, words):
    with pytest.raises(UserError, match=words):
        check_rotation(rotation, norm, classes)

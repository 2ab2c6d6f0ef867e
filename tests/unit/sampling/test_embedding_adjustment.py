"""Test-time embedding adjustment: norm, angle, places, and what it leaves alone."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from utils.bases import as_base, load_pipeline
from utils.common.errors import UserError
from utils.concepts.load import load_concept
from utils.concepts.save import save_concept
from utils.sampling.embedding_adjustment import adjust, slerp
from utils.sampling.images import sample

CLASSES = {"<new1>": "dog"}


@pytest.fixture
def pipeline(tiny_base, tmp_path):
    pipeline = load_pipeline(tiny_base, "cpu", "fp32")
    row = torch.randn(32, generator=torch.Generator().manual_seed(0))
    save_concept(tmp_path / "concept", {}, {"<new1>": row}, classes=["dog"], parts={})
    load_concept(pipeline, tmp_path / "concept" / "new1.safetensors")
    return pipeline


def test_slerp_keeps_the_circle():
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 5.0])
    torch.testing.assert_close(slerp(a, b, 1 / 3), torch.tensor([3**0.5 / 2, 0.5]))
    torch.testing.assert_close(slerp(a, a, 0.5), torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("rotation", [0.0, 0.4, 1.0])
def test_the_tokens_state_alone_is_rescaled_and_turned(pipeline, rotation):
    prompts = ["a photo of a <new1> dog on the beach", "a photo of a dog"]
    states = as_base(pipeline).text_states(prompts)
    target = as_base(pipeline).text_states(["a photo of a dog on the beach"])[0, 5]  # BOS a photo of a dog
    adjusted = adjust(pipeline, prompts, states, CLASSES, rotation)
    changed = (adjusted != states).any(dim=-1).nonzero().tolist()
    assert changed == [[0, 5]]  # BOS a photo of a <new1>
    new, old = adjusted[0, 5], states[0, 5]
    torch.testing.assert_close(new.norm(), target.norm())

    def angle(x, y):
        return torch.arccos(F.cosine_similarity(x, y, dim=0).clamp(-1, 1))

    torch.testing.assert_close(angle(old, new), rotation * angle(old, target), rtol=1e-3, atol=2e-3)
    if rotation == 1:
        torch.testing.assert_close(new, target)


def test_a_token_that_stands_for_the_noun(pipeline):
    states = as_base(pipeline).text_states(["a <new1> on the beach"])
    target = as_base(pipeline).text_states(["a dog on the beach"])[0, 2]
    adjusted = adjust(pipeline, ["a <new1> on the beach"], states, CLASSES, 1.0)
    torch.testing.assert_close(adjusted[0, 2], target)


def test_sampling_takes_it(pipeline):
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "eta": 0.0}
    plain, turned = (
        next(sample(pipeline, ["a <new1> dog"], [0], **settings, adjust=each))
        for each in (None, partial(adjust, pipeline, classes=CLASSES, rotation=0.5))
    )
    assert plain.tobytes() != turned.tobytes()


@pytest.mark.parametrize(("classes", "rotation"), [(CLASSES, 1.5), ({"<new1>": None}, 0.5)])
def test_mistakes_are_named(pipeline, classes, rotation):
    with pytest.raises(UserError, match="--embedding_adjustment"):
        adjust(pipeline, ["a <new1>"], torch.zeros(1, 24, 32), classes, rotation)

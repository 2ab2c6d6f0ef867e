"""Maps of cross-attention: what the recorder sees, which word is which token, numbers of known maps."""

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from utils.analysis.attention import (
    Recorder,
    attention_maps,
    inside,
    shares,
    symmetric_kl,
    word_maps,
    word_positions,
)
from utils.analysis.attention_maps import check_map_side, measure
from utils.analysis.attention_report import means
from utils.analysis.tuned import Tuned
from utils.bases import load_pipeline
from utils.bases.attention import attention_sides
from utils.common.errors import UserError
from utils.learners.layer_rows import cross_attention_layers
from utils.sampling.images import sample

DOG = Tuned("a", None, "<new1>", "teddy bear", "<new1> teddy bear", "classdiffusion")


@pytest.fixture(scope="module")
def pipeline(tiny_base):
    return load_pipeline(tiny_base, "cpu")


def call(pipeline, batch: int = 1):
    rng = torch.Generator().manual_seed(0)
    latents = torch.randn(batch, 4, 8, 8, generator=rng)
    states = torch.randn(batch, 24, 32, generator=rng)
    with torch.no_grad():
        return pipeline.unet(latents, torch.tensor(500), states).sample


def test_recorded_maps_sum_to_one_over_tokens_and_leave_the_output_as_it_is(pipeline):
    plain = call(pipeline)
    with Recorder(pipeline.unet, side=8) as recorder:
        watched = call(pipeline)
    assert torch.equal(plain, watched)
    maps = recorder.maps()
    assert maps.shape == (24, 8, 8)
    assert torch.allclose(maps.sum(dim=0), torch.ones(8, 8), atol=1e-5)
    call(pipeline)
    assert torch.equal(maps, recorder.maps())  # nothing is recorded any more


def test_a_layers_map_is_what_its_processor_weighs_the_values_with(pipeline):
    """Output = Σ map · value: with values of one token alone, the output is that token's map."""
    attention = pipeline.unet.get_submodule(cross_attention_layers(pipeline.unet)[0])
    rng = torch.Generator().manual_seed(1)
    hidden = torch.randn(1, 16, attention.to_q.in_features, generator=rng)
    states = torch.randn(1, 24, 32, generator=rng)
    maps = attention_maps(attention, hidden, states, side=4)[0]  # (24, 4, 4)
    seen = []

    class Watching(AttnProcessor):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):
            query = attn.head_to_batch_dim(attn.to_q(hidden_states))
            key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
            scores = torch.softmax(query @ key.transpose(1, 2) * attn.scale, dim=-1)
            seen.append(scores.mean(dim=0))  # over heads: (16, 24)
            return super().__call__(attn, hidden_states, encoder_hidden_states, **kwargs)

    before = attention.processor
    attention.set_processor(Watching())
    with torch.no_grad():
        attention(hidden, encoder_hidden_states=states)
    attention.set_processor(before)
    assert torch.allclose(maps.flatten(1).T, seen[0], atol=1e-6)


def test_layers_of_one_side_can_be_watched_alone(pipeline, tiny_base):
    sides = attention_sides(pipeline.unet, 8)
    assert sides == [8, 4]
    watched = {}
    for side in sides:
        with Recorder(pipeline.unet, side, own_side=True) as recorder:
            call(pipeline)
        watched[side] = recorder
        assert recorder.maps().shape == (24, side, side)
    assert sum(each.count for each in watched.values()) == len(cross_attention_layers(pipeline.unet))
    check_map_side(str(tiny_base), 4)
    with pytest.raises(UserError, match="--map_side 16: .* has maps of side 8, 4"):
        check_map_side(str(tiny_base), 16)


def test_with_guidance_only_the_conditional_half_counts(pipeline):
    with Recorder(pipeline.unet, 8, guided=True) as guided:
        list(sample(pipeline, ["a dog"], [0], 2, 3.0, 0.0))
    with Recorder(pipeline.unet, 8) as both:
        list(sample(pipeline, ["a dog"], [0], 2, 3.0, 0.0))
    layers = len(cross_attention_layers(pipeline.unet))
    assert (guided.count, both.count) == (2 * layers, 4 * layers)
    assert not torch.allclose(guided.maps(), both.maps())


def test_words_are_placed_in_the_ids_and_phrases_stay_together(pipeline):
    tokenizer = pipeline.tokenizer
    places = word_positions(tokenizer, "a photo of a teddy bear on hat", ["teddy bear"])
    # "hat" is no word of the tiny vocabulary: h, a, t</w>
    assert places == {
        "a": [1, 4],
        "photo": [2],
        "of": [3],
        "teddy bear": [5, 6],
        "on": [7],
        "hat": [8, 9, 10],
    }
    ids = tokenizer("a photo of a teddy bear on hat").input_ids
    assert tokenizer.decode(ids[5:7]).split() == ["teddy", "bear"]
    with pytest.raises(UserError, match="more than 24"):
        word_positions(tokenizer, "dog " * 23)


def test_shares_inside_and_area_of_synthetic_maps():
    maps = torch.zeros(5, 2, 2)
    maps[0] = 1.0  # BOS, which does not count
    maps[1] = torch.tensor([[0.3, 0.1], [0.0, 0.0]])
    maps[2] = 0.1
    maps[3] = 0.05  # the second piece of the same word
    words = word_maps(maps, {"dog": [1], "hat": [2, 3]})
    assert words["hat"] == pytest.approx(torch.full((2, 2), 0.15))
    assert shares(words) == pytest.approx({"dog": 0.4, "hat": 0.6})
    mask = torch.tensor([[1.0, 0.0], [0.5, 0.0]])
    assert inside(words["dog"], mask) == pytest.approx(0.75)
    assert inside(words["hat"], mask) == pytest.approx(mask.mean().item())  # a flat map: chance


def test_symmetric_kl_is_0_for_equal_maps_and_the_same_both_ways():
    one, other = torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 1.0]])
    assert symmetric_kl(one, 2 * one) == pytest.approx(0, abs=1e-12)  # size does not matter
    assert symmetric_kl(one, other) == symmetric_kl(other, one)
    p, q = torch.tensor([0.75, 0.25]), torch.tensor([0.5, 0.5])
    expected = 0.5 * ((p * (p / q).log()).sum() + (q * (q / p).log()).sum()).item()
    assert symmetric_kl(one, other) == pytest.approx(expected, rel=1e-6)
    assert symmetric_kl(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])) > 10


def test_a_record_takes_token_and_class_by_the_concepts_mask(pipeline):
    tokenizer = pipeline.tokenizer
    tokenizer = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    tokenizer.add_tokens(["<new1>"])
    prompt = "a photo of a {} wearing headphones on the beach"
    maps = torch.full((24, 2, 2), 0.1)  # ids: a photo of a <new1> teddy bear wearing headphones on the beach
    maps[5] = torch.tensor([[0.4, 0.0], [0.0, 0.0]])
    masks = {
        "{}": torch.tensor([[1.0, 0.0], [0.0, 0.0]]),
        "headphones": torch.tensor([[0.0, 1.0], [1.0, 0.0]]),
    }
    record, words = measure(maps, tokenizer, prompt, DOG, "teddy bear", masks)
    assert record["inside"] == pytest.approx({"<new1>": 1.0, "teddy bear": 0.25, "headphones": 0.5})
    assert record["area"] == pytest.approx({"<new1>": 0.25, "teddy bear": 0.25, "headphones": 0.5})
    tokens = len(tokenizer(record["prompt"], add_special_tokens=False).input_ids)
    assert tokens >= 12 and record["share"]["<new1>"] == pytest.approx(1 / tokens)
    assert set(record["kl_to_context"]) == {"<new1>", "teddy bear"}
    assert set(record["kl_to_context"]["<new1>"]) == {"headphones", "beach"}
    assert record["kl_to_context"]["teddy bear"]["beach"] == pytest.approx(0, abs=1e-9)
    of_base, _ = measure(maps, tokenizer, prompt, None, "teddy bear", masks)
    assert of_base["token"] is None and set(of_base["kl_to_context"]) == {"teddy bear"}
    averages = means([record, record])
    assert averages["inside"] == pytest.approx(
        {"concept token": 1.0, "class word": 0.25, "other objects": 0.5}
    )
    assert sum(averages["share"].values()) == pytest.approx(1)
    assert averages["chance_share"]["concept token"] == pytest.approx(1 / tokens)
    assert averages["chance_share"]["class word"] == pytest.approx(2 / tokens)

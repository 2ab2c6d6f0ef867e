"""Self-attention in the text encoder: the library's own weights, causal, and what words get of it."""

import pytest
import torch
from transformers import CLIPTextModel

from utils.analysis.attention import word_positions
from utils.analysis.text_attention import attention_paid, can_read, text_attention
from utils.bases import as_base, load_pipeline

PROMPT = "a photo of a dog on the beach"


@pytest.fixture(scope="module")
def base(tiny_base):
    return as_base(load_pipeline(tiny_base, "cpu", "fp32"))


def test_it_is_what_the_encoder_attends_with(base, tiny_base):
    eager = CLIPTextModel.from_pretrained(tiny_base, subfolder="text_encoder", attn_implementation="eager")
    with torch.no_grad():
        layers = eager(base.tokenize([PROMPT]), output_attentions=True).attentions  # each (1, H, L, L)
    found = text_attention(base, PROMPT)
    torch.testing.assert_close(found, torch.stack(layers).mean(dim=(0, 1, 2)))
    torch.testing.assert_close(found.sum(dim=1), torch.ones(len(found)))
    assert not found.triu(1).any()  # no token sees a later one
    assert can_read(base)


def test_words_are_paid_by_later_places_alone(base):
    places = word_positions(base.tokenizer, "a photo of dog")  # 1, 2, 3, 4; EOS at 5
    weights = torch.zeros(8, 8)
    weights[3, 2], weights[4, 2], weights[5, 2] = 0.3, 0.6, 0.0  # of, dog and EOS to "photo"
    weights[1, 2] = weights[6, 2] = 9.0  # before it, and padding: neither counts
    weights[5, 4] = 0.7
    paid, chance = attention_paid(weights, places)
    assert paid == pytest.approx({"a": 0.0, "photo": 0.3, "of": 0.0, "dog": 0.7})
    assert chance["dog"] == pytest.approx(1 / 6)
    assert chance["photo"] == pytest.approx((1 / 4 + 1 / 5 + 1 / 6) / 3)


def test_alike_for_all_is_chance(base):
    length = base.tokenizer.model_max_length
    alike = torch.ones(length, length).tril() / torch.arange(1, length + 1)[:, None]
    paid, chance = attention_paid(alike, word_positions(base.tokenizer, PROMPT))
    assert paid == pytest.approx(chance)

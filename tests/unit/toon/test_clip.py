"""How the toon CLIP is taught: twins that differ in one word, and attributes that its features must hold."""

import math
from dataclasses import asdict

import pytest
import torch
from torch import nn

from scripts.toon.recogniser import targets
from scripts.toon.train_clip import WIDTH, captions_of, reading_loss, told, with_twins
from scripts.toon.training import scenes
from scripts.toon.world import ATTRIBUTES, attributes, is_held_out

COUNT = sum(map(len, ATTRIBUTES.values()))


def test_a_twin_differs_in_one_attribute_and_holds_no_held_out_triple():
    batch = with_twins(scenes("twins", 40), "twins")
    assert len(batch) == 80 and not any(map(is_held_out, batch))
    for scene, twin in zip(batch[:40], batch[40:], strict=True):
        one, other = attributes(scene), attributes(twin)
        assert sum(one[name] != other[name] for name in one) == 1
        assert asdict(scene).keys() == asdict(twin).keys() and scene.seed == twin.seed
    assert with_twins(scenes("twins", 40), "twins") == batch
    assert with_twins(scenes("twins", 40), "others") != batch


def test_told_leaves_out_the_colours_that_the_caption_leaves_out():
    batch = scenes("told", 64)
    captions = captions_of(batch, "told")
    facts, all_facts = told(batch, captions), targets(batch)
    assert all(torch.equal(facts[name], all_facts[name]) for name in facts if name != "colour")
    colours = list(ATTRIBUTES["colour"])
    for index, text, scene in zip(facts["colour"].tolist(), captions, batch, strict=True):
        if index == -100:
            assert scene.subject.colour not in text.split()
        else:
            assert colours[index] == scene.subject.colour and colours[index] in text.split()
    assert {-100} < set(facts["colour"].tolist())


def test_reading_loss_is_the_summed_cross_entropy_over_attributes():
    batch = scenes("reading", 8)
    facts = targets(batch)
    readers = nn.Linear(WIDTH, COUNT)
    nn.init.zeros_(readers.weight)
    nn.init.zeros_(readers.bias)
    embeds = torch.nn.functional.normalize(torch.randn(8, WIDTH), dim=-1).requires_grad_()
    chance = sum(math.log(len(values)) for values in ATTRIBUTES.values())
    assert reading_loss(readers, embeds, facts).item() == pytest.approx(chance, rel=1e-5)

    by_hand = 0.0
    torch.nn.init.normal_(readers.weight)
    logits, start = embeds * math.sqrt(WIDTH) @ readers.weight.T, 0
    for name, values in ATTRIBUTES.items():
        part = logits[:, start : start + len(values)].log_softmax(1)
        rows = [i for i in range(8) if facts[name][i] >= 0]
        by_hand -= sum(part[i, facts[name][i]] for i in rows) / len(rows)
        start += len(values)
    loss = reading_loss(readers, embeds, facts)
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-4)
    loss.backward()
    assert embeds.grad.abs().min() > 0

"""How the toon CLIP is taught: twins that differ in one word, and attributes that its features must hold."""

import math
from dataclasses import asdict

import pytest
import torch
from torch import nn

from scripts.toon.models.clip import VALUES, WIDTH, captions_of, facts_of, reading_loss, stated, with_twins
from scripts.toon.models.training import scenes
from scripts.toon.world.captions import PARTS, attributes, part_words
from scripts.toon.world.world import is_held_out

COUNT = sum(map(len, VALUES.values()))


def test_a_twin_differs_in_one_attribute_and_holds_no_held_out_triple():
    batch = with_twins(scenes("twins", 40), "twins")
    assert len(batch) == 80 and not any(map(is_held_out, batch))
    for scene, twin in zip(batch[:40], batch[40:], strict=True):
        one, other = attributes(scene), attributes(twin)
        assert sum(one[name] != other[name] for name in one) == 1
        assert asdict(scene).keys() == asdict(twin).keys() and scene.seed == twin.seed
    assert with_twins(scenes("twins", 40), "twins") == batch
    assert with_twins(scenes("twins", 40), "others") != batch


def test_stated_leaves_out_what_the_caption_leaves_out():
    batch = scenes("stated", 64)
    captions = captions_of(batch, "stated", parts=0.5)
    facts, all_facts = stated(batch, captions), facts_of(batch)
    assert facts.keys() == VALUES.keys()
    assert all(
        torch.equal(facts[name], all_facts[name]) for name in facts.keys() & {"class", "place", "worn"}
    )
    for name in ("colour", *PARTS):
        for index, truth, text, scene in zip(facts[name], all_facts[name], captions, batch, strict=True):
            look = scene.subject
            words = f"{look.colour} {look.kind}" if name == "colour" else part_words(look).get(name)
            named = words is not None and words in text
            assert index == (truth if named else -100)
        assert {-100} < set(facts[name].tolist())


def test_reading_loss_is_the_summed_cross_entropy_over_attributes():
    batch = scenes("reading", 8)
    facts = facts_of(batch)
    readers = nn.Linear(WIDTH, COUNT)
    nn.init.zeros_(readers.weight)
    nn.init.zeros_(readers.bias)
    embeds = torch.nn.functional.normalize(torch.randn(8, WIDTH), dim=-1).requires_grad_()
    shares = {name: (facts[name] >= 0).float().mean().item() for name in VALUES}  # of images that have one
    chance = sum(shares[name] * math.log(len(values)) for name, values in VALUES.items())
    assert reading_loss(readers, embeds, facts).item() == pytest.approx(chance, rel=1e-5)

    by_hand = 0.0
    torch.nn.init.normal_(readers.weight)
    logits, start = embeds * math.sqrt(WIDTH) @ readers.weight.T, 0
    for name, values in VALUES.items():
        part = logits[:, start : start + len(values)].log_softmax(1)
        rows = [i for i in range(8) if facts[name][i] >= 0]
        by_hand -= sum(part[i, facts[name][i]] for i in rows) / 8
        start += len(values)
    loss = reading_loss(readers, embeds, facts)
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-4)
    loss.backward()
    assert embeds.grad.abs().min() > 0

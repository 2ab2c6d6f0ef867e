"""The training of toon's DINO: its scenes, its loss, and the numbers that judge it."""

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPModel, ViTModel

from scripts.toon.models.dino import auc, build, cls_features, contrastive_loss, judge, move, separation
from scripts.toon.models.training import generator, to_pixels
from scripts.toon.models.unet import patch_model, patches_of, training_scenes
from scripts.toon.world.individuals import (
    batch_of,
    class_twin,
    hard_kinds,
    individuals,
    near_twin,
    scene_of,
    visibly_differ,
)
from scripts.toon.world.world import ANIMALS, HELD_OUT, KINDS, is_held_out


@pytest.mark.parametrize("kind", KINDS)
def test_scenes_of_an_individual_change_everything_but_the_individual(kind):
    [look] = individuals("test", [kind])
    drawn = [scene_of(look, random.Random(f"{kind}/{i}")) for i in range(80)]
    assert all(scene.subject == look for scene in drawn)
    assert len({scene.place for scene in drawn}) == 7
    assert len({scene.neighbour for scene in drawn}) == (4 if kind == "barn" else 5)
    assert any(scene.faces_left for scene in drawn)
    if any(kind in triple for triple in HELD_OUT):
        assert any(map(is_held_out, drawn)), "the judge must know the triples that the UNet's training lacks"
    assert drawn[3] == scene_of(look, random.Random(f"{kind}/3"))


def test_individuals_of_other_seeds_differ():
    kinds = ["dog"] * 20
    assert individuals("one", kinds) == individuals("one", kinds)
    assert not set(individuals("one", kinds)) & set(individuals("two", kinds))


def test_most_of_a_batch_comes_from_three_classes_at_most():
    for seed in range(20):
        kinds = hard_kinds(random.Random(seed), 32)
        most = sorted((kinds.count(kind) for kind in set(kinds)), reverse=True)
        assert len(kinds) == 32 and sum(most[:3]) >= 28
    assert {kind for seed in range(20) for kind in hard_kinds(random.Random(seed), 32)} == set(KINDS)


def test_moving_keeps_the_image_in_frame_and_flips_half():
    ramp = torch.linspace(-1, 1, 16).expand(200, 3, 16, 16)
    moved = move(ramp, generator("move"))
    assert moved.shape == ramp.shape and moved.abs().max() <= 1.001
    rises = (moved[:, 0, 0, -1] > moved[:, 0, 0, 0]).float().mean().item()
    assert 0.35 < rises < 0.65
    assert moved.std(dim=2).max() < 1e-4, "rows are no longer alike: the image was turned"


@pytest.mark.parametrize("kind", KINDS)
def test_twins_differ_from_their_individual_by_the_class_or_by_two_parts(kind):
    [look] = individuals("twins", [kind])
    for i in range(20):
        kin, near = class_twin(look, random.Random(i)), near_twin(look, random.Random(i))
        assert kin.kind != kind and replace(kin, kind=kind) == look
        assert (kin.kind in ANIMALS) == (kind in ANIMALS)
        changed = [field for field in vars(look) if getattr(near, field) != getattr(look, field)]
        assert len(changed) == 2 and "kind" not in changed
    assert near_twin(look, random.Random(0)) != near_twin(look, random.Random(1))


def test_colours_differ_visibly_when_far_apart():
    assert not visibly_differ((10, 20, 30), (50, 20, 30))
    assert visibly_differ((10, 20, 30), (10, 61, 30))
    assert visibly_differ((0, 0, 0), None) and not visibly_differ(None, None)
    assert visibly_differ("spots", "none") and not visibly_differ("spots", "spots")


def test_a_batch_holds_individuals_and_their_twins_by_turns_of_two_sorts():
    looks = batch_of("batch", 16)
    assert looks == batch_of("batch", 16) and len(set(looks)) == 16
    others = [one.kind != twin.kind for one, twin in zip(looks[:8], looks[8:], strict=True)]
    assert others == [True, False] * 4


def test_contrastive_loss_equals_a_loop():
    features = F.normalize(torch.randn(6, 4, generator=generator("loss")), dim=1)
    kind = torch.tensor([0, 0, 1, 0, 0, 1])
    loss = 0.0
    for i in range(6):
        margin = [0.1 * (kind[i] != kind[j]).item() for j in range(6)]
        scores = {j: (float(features[i] @ features[j]) + margin[j]) / 0.1 for j in range(6) if j != i}
        loss += math.log(sum(map(math.exp, scores.values()))) - scores[(i + 3) % 6]
    assert contrastive_loss(features, kind).item() == pytest.approx(loss / 6, abs=1e-5)


def test_contrastive_loss_is_low_when_views_of_an_individual_meet():
    looks = F.normalize(torch.randn(3, 4, generator=generator("looks")), dim=1)
    kind = torch.zeros(6)
    matched = contrastive_loss(torch.cat([looks, looks]), kind)
    assert matched < contrastive_loss(torch.cat([looks, looks.roll(1, 0)]), kind) - 1


def test_auc_has_known_answers():
    low, high = torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0])
    assert (auc(high, low), auc(low, high), auc(low, low)) == (1, 0, 0.5)
    assert auc(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0, 2.0, 3.0])) == pytest.approx(5 / 8)


def test_separation_on_hand_made_features():
    # Two dogs, orthogonal, two images of each; a car, opposite to the first dog.
    features = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1], [-1, 0]])
    found = separation(features, torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 0, 0, 0, 1]))
    assert found == {
        "auc_same_class": 1,
        "auc_any": 1,
        "same_individual": 1,
        "same_class": 0,
        "other_class": -0.5,
    }
    blind = separation(torch.ones(4, 1), torch.tensor([0, 0, 1, 2]), torch.tensor([0, 0, 0, 1]))
    assert blind["auc_same_class"] == blind["auc_any"] == 0.5


def shown_to(model, pixels):
    """The hidden states of images under DINO's own normalisation."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    shown = ((pixels.permute(0, 2, 3, 1) + 1) / 2 - mean) / std
    with torch.no_grad():
        return model(shown.permute(0, 3, 1, 2)).last_hidden_state


def test_cls_features_are_unit_vectors_of_the_cls_token():
    torch.manual_seed(0)
    model = build(64).eval()
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        cls = shown_to(model, pixels)[:, 0]
        torch.testing.assert_close(cls_features(model, pixels), F.normalize(cls, dim=1))


@pytest.mark.parametrize("name", ["dino", "clip"])
def test_the_unets_patches_are_a_models_of_images_as_it_learned_them(name):
    folder = Path("data/toon") / name
    (patches,) = patches_of(patch_model(folder), "patches", 3, 64, alone=0)
    pixels = to_pixels(training_scenes("patches/0", 3), 64)
    if name == "dino":
        model = ViTModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32).eval()
        states = shown_to(model, pixels)
    else:
        clip = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            states = clip.vision_model(pixel_values=pixels).last_hidden_state
    assert patches.shape == (3, 128, 8, 8)
    torch.testing.assert_close(patches[:, :, 2, 5].float(), states[:, 1 + 2 * 8 + 5], atol=4e-3, rtol=2e-3)
    (larger,) = patches_of(patch_model(folder), "patches", 3, 128, alone=0)
    assert larger.shape == (3, 128, 16, 16)


def test_judging_an_untrained_model_finds_little_and_the_same_twice():
    torch.manual_seed(0)
    model = build(64).eval()
    found = judge(model, 64, each=2, count=2, disturbed=True)
    assert found == judge(model, 64, each=2, count=2, disturbed=True)
    assert 0.3 < found["auc_same_class"] < 0.8

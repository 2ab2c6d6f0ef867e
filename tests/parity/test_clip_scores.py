"""CLIP-T and CLIP-I on data/toon/clip: equal to what transformers' own CLIPModel says of the same pairs."""

from pathlib import Path

import pytest
import torch
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from scripts.toon.models.training import scenes
from scripts.toon.world.render import render
from utils.bases.text import tokenize
from utils.common.images import list_images, open_image
from utils.scores.encoders import ClipEncoder
from utils.scores.similarity import clip_i, clip_t, mean_similarity

CLIP = Path("data/toon/clip")


@pytest.fixture(scope="module")
def encoder() -> ClipEncoder:
    return ClipEncoder(CLIP, "cpu")


@torch.no_grad()
def test_clip_t_is_the_models_logit_over_its_scale(encoder):
    pictures = [render(scene, 64) for scene in scenes("clip-t", 4)]
    prompts = ["a dog", "a photo of a white cat wearing a hat on the beach", "a barn", "a car in the snow"]
    model = CLIPModel.from_pretrained(CLIP, dtype=torch.float32)
    out = model(
        input_ids=tokenize(CLIPTokenizer.from_pretrained(CLIP), prompts),
        pixel_values=CLIPImageProcessorPil.from_pretrained(CLIP)(pictures, return_tensors="pt").pixel_values,
    )
    cosines = out.logits_per_image / model.logit_scale.exp()  # (images, prompts)
    scores = clip_t(encoder.image_features(pictures), encoder.text_features(prompts))
    torch.testing.assert_close(scores, cosines.diagonal(), rtol=0, atol=1e-5)


def test_clip_knows_the_example_images(encoder):
    folders = ("dog", "teddy_bear", "barn")
    features = [
        encoder.image_features(map(open_image, list_images(Path("data") / folder)[0])) for folder in folders
    ]
    words = encoder.text_features([f"a photo of a {folder.replace('_', ' ')}" for folder in folders])
    for i, own in enumerate(features):
        assert (mean_similarity(words, own).argmax() == i).item()
        assert all(clip_i(own, own) > clip_i(own, other) + 0.2 for other in features if other is not own)

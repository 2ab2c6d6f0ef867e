"""BLIP2T against the forward of transformers' own models, computed pair by pair."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoProcessor, Blip2ForImageTextRetrieval, BlipForImageTextRetrieval

from tests.tiny_blip import write_blip
from utils import blip2t
from utils.blip2t import BLIP2T

PROMPTS = ["a photo of a dog", "cat", "a dog wearing headphones on the beach in the snow", "a photo of a dog"]
KINDS = {
    "BLIP-1": ("BLIP-1", False),
    "BLIP-2": ("BLIP-2", False),
    "BLIP-2 with image tokens": ("BLIP-2", True),
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blip(tmp_path_factory.mktemp("blip"), *KINDS[request.param])


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)) for _ in PROMPTS]


@torch.no_grad()
def direct(folder: Path, head: str, pictures: list[Image.Image]) -> Tensor:
    """(N,) one forward per pair, as the model cards have it."""
    processor = AutoProcessor.from_pretrained(folder)
    scores = []
    for prompt, picture in zip(PROMPTS, pictures, strict=True):
        inputs = processor(images=picture, text=prompt, return_tensors="pt")
        if AutoConfig.from_pretrained(folder).model_type == "blip-2":
            model = Blip2ForImageTextRetrieval.from_pretrained(folder).eval()
            out = model(**inputs, use_image_text_matching_head=head == "itm").logits_per_image
        else:
            model = BlipForImageTextRetrieval.from_pretrained(folder).eval()
            out = model(**inputs, use_itm_head=head == "itm").itm_score
        assert out.shape == ((1, 2) if head == "itm" else (1, 1))
        scores.append(out.softmax(1)[0, 1] if head == "itm" else out[0, 0])
    return torch.stack(scores)


@pytest.mark.parametrize("head", ["itc", "itm"])
def test_scores_equal_the_models_own_whatever_the_batch_size(folder, pictures, head):
    expected = direct(folder, head, pictures)
    assert expected.diff().abs().min() > 1e-3, "the pairs must differ for this to say anything"
    blip = BLIP2T(folder, "cpu", head)
    for batch_size in (1, 3, 8):
        scores = blip.scores(PROMPTS, pictures, batch_size)
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, expected, rtol=0, atol=2e-6)


@torch.no_grad()
def test_itc_of_all_pairs_is_the_matrix_that_transformers_returns(folder, pictures):
    blip = BLIP2T(folder, "cpu")
    texts, images = PROMPTS[:3], pictures[:2]
    inputs = blip.processor(images=images[0], text=texts, padding=True, return_tensors="pt")
    inputs["pixel_values"] = blip.processor.image_processor(images, return_tensors="pt").pixel_values
    if blip.family == "BLIP-1":
        matrix = blip.parts.model(**inputs, use_itm_head=False).itm_score  # (2, 3)
    else:
        matrix = blip.parts.model(**inputs, use_image_text_matching_head=False).logits_per_image
    pairs = blip.scores(texts * 2, [images[0]] * 3 + [images[1]] * 3)
    torch.testing.assert_close(pairs.view(2, 3), matrix, rtol=0, atol=2e-6)


@pytest.mark.parametrize("head", ["itc", "itm"])
def test_half_precision_gives_the_same_scores_roughly(folder, pictures, head, monkeypatch):
    expected = BLIP2T(folder, "cpu", head).scores(PROMPTS, pictures)
    monkeypatch.setattr(blip2t, "choose_device_dtype", lambda device: (torch.device("cpu"), torch.float16))
    blip = BLIP2T(folder, "cuda", head)
    assert blip.parts.model.vision_model.post_layernorm.weight.dtype == torch.float16
    scores = blip.scores(PROMPTS, pictures)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, rtol=0, atol=0.02)
    assert not torch.equal(scores, expected)

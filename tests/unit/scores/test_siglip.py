"""SigLIP as a judge, on a tiny random model: the model's own features, mistakes, and its row."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

from tests.tiny_models import write_tokenizer
from utils.common.errors import UserError
from utils.evaluation.config import EvaluationConfig
from utils.evaluation.data_sets import Individual, Subject
from utils.evaluation.scoring import Scorer, check_metrics, check_texts, score_subject
from utils.evaluation.shots import shots_of
from utils.scores.siglip import SiglipEncoder

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
PROMPTS = ["a photo of a dog", "a dog wearing headphones on the beach"]
LENGTH = 16


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(0)
    text = TOWER | {"vocab_size": len(write_tokenizer(folder)), "max_position_embeddings": LENGTH}
    vision = TOWER | {"image_size": 16, "patch_size": 8}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return str(folder)


def noise(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)) for _ in range(count)]


@torch.no_grad()
def test_features_are_the_models_own_with_prompts_padded_to_its_whole_length(siglip):
    encoder, model = SiglipEncoder(siglip, "cpu"), SiglipModel.from_pretrained(siglip)
    pixels = SiglipImageProcessorPil.from_pretrained(siglip)(noise(3), return_tensors="pt").pixel_values
    ids = encoder.tokenizer(PROMPTS, padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
    assert ids.shape == (2, LENGTH)
    out = model(input_ids=ids, pixel_values=pixels)
    image, text = encoder.image_features(noise(3), batch_size=2), encoder.text_features(PROMPTS)
    torch.testing.assert_close(image, F.normalize(out.image_embeds, dim=1), rtol=0, atol=1e-6)
    torch.testing.assert_close(text, F.normalize(out.text_embeds, dim=1), rtol=0, atol=1e-6)


def test_mistakes_are_reported_before_it_loads(siglip, tmp_path):
    models = {"siglip": siglip}
    check_metrics(["siglip_t"], models, "itc")
    check_texts(["siglip_t"], models, PROMPTS)
    with pytest.raises(UserError, match=f"reads {LENGTH}: shorten it"):
        check_texts(["siglip_t"], models, ["a dog on the beach " * 10])
    with pytest.raises(UserError, match="the base has no siglip judge of its own: give --siglip"):
        check_metrics(["siglip_t"], {}, "itc")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match="is a clip; give a SiglipModel"):
        check_metrics(["siglip_t"], {"siglip": str(tmp_path)}, "itc")


def test_its_row_scores_images_with_their_prompts(siglip, tmp_path: Path):
    assert EvaluationConfig(dataset="toon", metrics="siglip_t", siglip=siglip).siglip == siglip
    subject = Subject("rex", (Individual("<new1>", "dog", tmp_path, ""),), ("a {}", "a {} on the beach"))
    shots = shots_of(subject, "base", [0])
    for shot, image in zip(shots, noise(2), strict=True):
        (tmp_path / shot.image).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / shot.image)
    scorer = Scorer(["siglip_t"], {"siglip": siglip}, device="cpu")
    scores = score_subject(tmp_path, tmp_path / "base" / "rex", subject, shots, [], scorer)
    encoder = SiglipEncoder(siglip, "cpu")
    text = encoder.text_features(["a dog", "a dog on the beach"])
    expected = (encoder.image_features(noise(2)) * text).sum(1).mean().item()
    assert scores.metric == {"siglip_t": pytest.approx(expected, abs=2e-6)}
    assert scores.models == {"siglip_t": siglip}

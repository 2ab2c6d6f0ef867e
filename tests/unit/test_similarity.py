"""CLIP-I: known answers, and the definition against a loop."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from utils.similarity import clip_i, clip_image_features


def test_known_answers():
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert clip_i(x, x) == 1
    assert clip_i(x, y) == 0
    assert clip_i(torch.cat([x, y]), x) == 0.5  # all pairs, not the best one


def test_features_are_the_models_own_and_do_not_depend_on_the_batch_size():
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = CLIPModel(
        CLIPConfig(
            text_config=tower, vision_config=tower | {"image_size": 16, "patch_size": 8}, projection_dim=8
        )
    ).eval()
    processor = CLIPImageProcessorPil(size={"height": 16, "width": 16}, do_center_crop=False)
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)) for _ in range(3)]
    features = clip_image_features(model, processor, pictures)
    single = clip_image_features(model, processor, pictures, batch_size=1)
    assert torch.allclose(features, single, atol=1e-6)
    with torch.no_grad():
        out = model(
            pixel_values=processor(images=pictures, return_tensors="pt").pixel_values,
            input_ids=torch.tensor([[0, 1, 49407]]),
        )
    assert torch.allclose(features, out.image_embeds, atol=1e-6)
    loop = np.mean([float(features[i] @ features[j]) for i in range(2) for j in range(3)])
    assert clip_i(features[:2], features) == pytest.approx(loop, abs=1e-6)

"""At SD 1.5's shape, on random weights: a LoRA through diffusers and PEFT, and what a merge asks of captions.

Here exact ranks differ between layers, 320, 640 and 768, which toon's do not.
"""

import re

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from tests.clip_vocabulary import write_clip_tokenizer
from utils.concepts.captions import regularisation_captions
from utils.concepts.export import write_diff, write_lora
from utils.concepts.lora import is_kv_name
from utils.concepts.merge import Solver, features, install_rows, target_phrases

pytestmark = pytest.mark.slow  # half a minute and 8 GB of memory on one core


def test_full_rank_lora_predicts_the_same_noise(tmp_path):
    pytest.importorskip("peft")
    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768).requires_grad_(False).eval()
    parameters = {name: weight for name, weight in unet.named_parameters() if is_kv_name(name)}
    deltas = {
        name: (0.1 * weight.std() * torch.randn_like(weight)).double() for name, weight in parameters.items()
    }
    inputs = (torch.randn(1, 4, 16, 16), 500, torch.randn(1, 77, 768))
    before = unet(*inputs).sample
    for name, weight in parameters.items():
        weight += deltas[name].float()
    merged = unet(*inputs).sample
    for name, weight in parameters.items():
        weight -= deltas[name].float()

    report = write_lora(
        tmp_path / "a.safetensors", deltas, torch.eye(768, dtype=torch.float64), {}, None, 0, "fp32"
    )
    assert report.rank == 768 and report.error < 1e-6
    state, alphas = StableDiffusionPipeline.lora_state_dict(tmp_path / "a.safetensors")
    StableDiffusionPipeline.load_lora_into_unet(state, alphas, unet)
    stock = unet(*inputs).sample
    assert (merged - before).abs().max() > 1e-3
    assert (stock - merged).abs().max() < 1e-3 * (merged - before).abs().max()

    write_lora(
        tmp_path / "half.safetensors", deltas, torch.eye(768, dtype=torch.float64), {}, None, 0, "fp16"
    )
    write_diff(tmp_path / "diff.safetensors", deltas, torch.eye(768, dtype=torch.float64), {}, "fp16")
    sizes = [round((tmp_path / f"{name}.safetensors").stat().st_size / 1e6) for name in ("half", "diff")]
    assert sizes == [63, 38]  # MB


def test_the_captions_span_768_directions(tmp_path):
    tokenizer = write_clip_tokenizer(tmp_path)
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        eos_token_id=2,
    )
    text_encoder = CLIPTextModel(config).eval()
    for name, parameter in text_encoder.named_parameters():
        if re.search(r"final_layer_norm\.bias", name):  # a fresh one hides a direction; CLIP's has learned
            parameter.data.normal_(0, 0.1)
    row = torch.randn(768) * 0.02
    install_rows(text_encoder, tokenizer, {"<new1>": row})
    targets = features(text_encoder, tokenizer, target_phrases("<new1>", "dog"), "<new1>")
    assert targets.shape == (6, 768)  # METHODS: six rows for a class of one token
    captions = features(text_encoder, tokenizer, regularisation_captions())
    start = torch.randn(320, 768, dtype=torch.float64)
    values = torch.randn(320, 6, dtype=torch.float64)
    weight = Solver(targets, captions)(start, values)
    assert (weight @ targets.T - values).abs().max() < 1e-8

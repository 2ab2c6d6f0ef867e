"""All of the cross-attention: what trains, its gradient, and Hugging Face's layout there and back."""

from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor
from safetensors.torch import load_file

from tests.tiny_models import tiny_pipeline
from utils.bases.devices import cast_frozen
from utils.concepts.load import load_concept
from utils.concepts.save import save_concept
from utils.learners.cross_attention import trainable_cross_attention
from utils.learners.cross_attention_kv import trainable_kv

PARTS = ("to_k.weight", "to_out.0.bias", "to_out.0.weight", "to_q.weight", "to_v.weight")


@pytest.fixture
def pipeline(tmp_path: Path):
    return tiny_pipeline(tmp_path / "words")


def predicted(unet, dtype=torch.float32) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    latents, text = torch.randn(2, 4, 8, 8, generator=rng), torch.randn(2, 6, 32, generator=rng)
    return unet(latents.to(dtype), torch.tensor([3, 500]), text.to(dtype)).sample


def test_trains_all_of_attn2_and_nothing_else_and_changes_no_output(pipeline):
    unet = pipeline.unet
    before = predicted(unet)
    parameters = trainable_cross_attention(unet)
    layers = {name.partition(".attn2.")[0] for name in parameters}
    assert len(layers) == 4
    assert sorted(parameters) == sorted(f"{layer}.attn2.{part}" for layer in layers for part in PARTS)
    assert all(value is unet.get_parameter(name) for name, value in parameters.items())
    assert {n for n, p in unet.named_parameters() if p.requires_grad} == parameters.keys()
    assert torch.equal(predicted(unet), before)


def test_gradients_are_diffusers_own(pipeline, tmp_path):
    """Those of CustomDiffusionAttnProcessor with train_q_out, whose sublayers start from the same weights."""
    parameters = trainable_cross_attention(pipeline.unet)
    predicted(pipeline.unet).square().sum().backward()

    other = tiny_pipeline(tmp_path / "other").unet
    other.requires_grad_(False)
    for name, attention in other.named_modules():
        if name.endswith(".attn2"):
            width, text = attention.to_q.in_features, attention.to_k.in_features
            processor = CustomDiffusionAttnProcessor(True, True, width, text)
            processor.to_k_custom_diffusion.weight.data.copy_(attention.to_k.weight)
            processor.to_v_custom_diffusion.weight.data.copy_(attention.to_v.weight)
            processor.to_q_custom_diffusion.weight.data.copy_(attention.to_q.weight)
            processor.to_out_custom_diffusion[0].load_state_dict(attention.to_out[0].state_dict())
            attention.set_processor(processor)
    predicted(other).square().sum().backward()
    for name, value in parameters.items():
        layer, _, part = name.partition(".attn2.")
        projection, _, rest = part.partition(".")
        theirs = other.get_parameter(f"{layer}.attn2.processor.{projection}_custom_diffusion.{rest}")
        assert value.grad.abs().max() > 0
        torch.testing.assert_close(value.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_half_precision_around_it_keeps_it_in_float32(pipeline):
    parameters = trainable_cross_attention(pipeline.unet)
    read = {name: value.data for name, value in parameters.items()}  # views of the mapped file
    cast_frozen([pipeline.unet], torch.bfloat16)
    for name, value in parameters.items():  # a view that stays keeps all of the file in memory
        assert torch.equal(value, read[name]) and value.data_ptr() != read[name].data_ptr()
    output = predicted(pipeline.unet, torch.bfloat16)
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
    assert {value.dtype for value in parameters.values()} == {torch.float32}
    assert all(value.grad.isfinite().all() and value.grad.abs().max() > 0 for value in parameters.values())


@pytest.mark.parametrize("safe", [True, False])
def test_huggingface_layout_there_and_back_exactly(pipeline, tmp_path, safe):
    parameters = trainable_cross_attention(pipeline.unet)
    with torch.no_grad():
        for value in parameters.values():
            value += torch.randn(value.shape, generator=torch.Generator().manual_seed(1)) * 0.1
    save_concept(tmp_path / "dog", dict(parameters), {"<new1>": torch.ones(32)}, safe)
    if safe:
        keys = load_file(tmp_path / "dog" / "pytorch_custom_diffusion_weights.safetensors").keys()
        block = "mid_block.attentions.0.transformer_blocks.0.attn2.processor."
        assert {key.removeprefix(block) for key in keys if key.startswith(block)} == {
            "to_k_custom_diffusion.weight",
            "to_v_custom_diffusion.weight",
            "to_q_custom_diffusion.weight",
            "to_out_custom_diffusion.0.weight",
            "to_out_custom_diffusion.0.bias",
        }
    fresh = tiny_pipeline(tmp_path / "fresh")
    base, trained = predicted(fresh.unet), predicted(pipeline.unet)
    loaded = load_concept(fresh, tmp_path / "dog")
    assert len(loaded.merged) == len(parameters) == 20
    assert all(torch.equal(fresh.unet.get_parameter(name), value) for name, value in parameters.items())
    assert torch.equal(predicted(fresh.unet), trained) and not torch.equal(trained, base)


def test_kv_alone_is_a_part_of_it(pipeline, tmp_path):
    kv = trainable_kv(tiny_pipeline(tmp_path / "other").unet)
    assert kv.keys() < trainable_cross_attention(pipeline.unet).keys()

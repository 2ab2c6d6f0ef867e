"""K/V trained in place: the base model at the start, BOS without gradient, half precision, checkpointing."""

import copy
import pickle

import pytest
import torch
from torch import Tensor

from tests.tiny_models import tiny_pipeline
from utils.learners.cross_attention_kv import trainable_kv


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("tokenizer")).unet


@pytest.fixture
def unet(base):
    return copy.deepcopy(base)


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=generator).to(dtype)
    hidden = torch.randn(2, 7, 32, generator=generator).to(dtype).requires_grad_(True)
    return latents, torch.tensor([5, 800]), hidden


def backward(unet, hidden: Tensor, dtype: torch.dtype = torch.float32) -> None:
    latents, timesteps, _ = inputs(dtype)
    unet(latents, timesteps, hidden).sample.float().square().mean().backward()


def test_trains_k_and_v_of_every_cross_attention_and_nothing_else(unet):
    kv = trainable_kv(unet)
    expected = {n for n, _ in unet.named_parameters() if ".attn2.to_k." in n or ".attn2.to_v." in n}
    assert set(kv) == expected and len(kv) == 8  # one down, one middle, two up blocks
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight" in kv
    assert all(dict(unet.named_parameters())[name] is weight for name, weight in kv.items())
    assert {n for n, p in unet.named_parameters() if p.requires_grad} == expected


def test_starts_as_the_base_model_exactly(base, unet):
    latents, timesteps, hidden = inputs()
    processors = {name: type(processor) for name, processor in unet.attn_processors.items()}
    trainable_kv(unet)
    assert torch.equal(unet(latents, timesteps, hidden).sample, base(latents, timesteps, hidden).sample)
    assert {name: type(processor) for name, processor in unet.attn_processors.items()} == processors


def test_bos_passes_no_gradient_to_the_text_or_the_weights(unet):
    kv = trainable_kv(unet)
    *_, hidden = inputs()
    backward(unet, hidden)
    assert hidden.grad[:, 0].abs().max() == 0 and hidden.grad[:, 1:].abs().min() > 0
    unet.zero_grad()
    latents, timesteps, _ = inputs()
    only_bos = hidden.detach()[:, :1]
    unet(latents, timesteps, only_bos).sample.square().mean().backward()
    assert all(weight.grad.abs().max() == 0 for weight in kv.values())


def test_an_adamw_step_moves_k_and_v_only(unet):
    kv = trainable_kv(unet)
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    optimizer = torch.optim.AdamW(kv.values(), lr=1e-3)
    backward(unet, inputs()[2])
    optimizer.step()
    assert {n for n, weight in unet.state_dict().items() if not torch.equal(weight, before[n])} == set(kv)


def test_half_precision_model_with_float32_kv(base, unet):
    dtype = torch.bfloat16
    latents, timesteps, hidden = inputs(dtype)
    base_sample = copy.deepcopy(base).to(dtype)(latents, timesteps, hidden).sample
    unet.to(dtype)
    kv = trainable_kv(unet)
    sample = unet(latents, timesteps, hidden).sample
    assert sample.dtype == unet.dtype == dtype
    torch.testing.assert_close(sample, base_sample, rtol=0, atol=2e-2)
    sample.float().square().mean().backward()
    assert all(weight.dtype == weight.grad.dtype == torch.float32 for weight in kv.values())
    assert all(weight.grad.norm() > 0 for weight in kv.values())
    assert hidden.grad.dtype == dtype


def test_half_precision_gradients_are_close_to_float32(unet):
    reference = copy.deepcopy(unet)
    expected, kv = trainable_kv(reference), trainable_kv(unet.to(torch.bfloat16))
    backward(reference, inputs()[2])
    backward(unet, inputs(torch.bfloat16)[2], torch.bfloat16)
    for name, weight in kv.items():
        error = (weight.grad - expected[name].grad).norm() / expected[name].grad.norm()
        assert error < 0.1, name


def test_works_under_autocast(unet):
    kv = trainable_kv(unet)
    with torch.autocast("cpu", torch.bfloat16):
        backward(unet, inputs()[2])
    assert all(weight.grad.dtype == torch.float32 and weight.grad.norm() > 0 for weight in kv.values())


def test_gradient_checkpointing_gives_the_same_gradients(unet):
    checkpointed = copy.deepcopy(unet).train()
    checkpointed.enable_gradient_checkpointing()
    kv, kv_checkpointed = trainable_kv(unet.train()), trainable_kv(checkpointed)
    hidden, hidden_checkpointed = inputs()[2], inputs()[2]
    backward(unet, hidden)
    backward(checkpointed, hidden_checkpointed)
    assert hidden_checkpointed.grad[:, 0].abs().max() == 0
    torch.testing.assert_close(hidden_checkpointed.grad, hidden.grad)
    for name, weight in kv.items():
        torch.testing.assert_close(kv_checkpointed[name].grad, weight.grad)


def test_an_outer_module_sees_all_that_is_trained_and_can_be_copied(unet):
    kv = trainable_kv(unet)
    outer = pickle.loads(pickle.dumps(torch.nn.ModuleDict({"unet": unet})))
    assert {n for n, p in outer.named_parameters() if p.requires_grad} == {f"unet.{name}" for name in kv}

"""K/V in place and rows beside the table, against diffusers' attention processors and a resized table."""

import pytest
import torch
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor, CustomDiffusionAttnProcessor2_0
from torch import Tensor

from tests.tiny_models import tiny_pipeline
from utils.learners.cross_attention_kv import trainable_kv
from utils.learners.token_rows import install

PROMPTS = ["a photo of a <new1> dog", "a picture of a <new1> cat on the beach"]


def install_processors(unet, processor_class: type) -> dict[str, Tensor]:
    """Puts diffusers' processors, with K/V copied from the UNet, into it; returns K/V under our names."""
    unet.requires_grad_(False)
    processors, kv = {}, {}
    for name in unet.attn_processors:
        attention = unet.get_submodule(name.removesuffix(".processor"))
        if "attn1" in name:
            processors[name] = processor_class(train_kv=False, train_q_out=False)
            continue
        hidden_size, width = attention.to_k.weight.shape
        processors[name] = processor_class(True, False, hidden_size, width)
        for letter in "kv":
            trained = processors[name].get_submodule(f"to_{letter}_custom_diffusion")
            trained.load_state_dict(attention.get_submodule(f"to_{letter}").state_dict())
            kv[f"{name.removesuffix('processor')}to_{letter}.weight"] = trained.weight
    unet.set_attn_processor(processors)
    return kv


def predict_and_backward(pipeline) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    target = torch.randn(2, 4, 8, 8, generator=generator)
    input_ids = pipeline.tokenizer(
        PROMPTS, padding="max_length", max_length=pipeline.tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
    encoder_hidden_states = pipeline.text_encoder(input_ids).last_hidden_state
    noise_pred = pipeline.unet(latents, torch.tensor([40, 700]), encoder_hidden_states).sample
    (noise_pred - target).square().mean().backward()
    return noise_pred.detach()


@pytest.mark.parametrize("processor_class", [CustomDiffusionAttnProcessor, CustomDiffusionAttnProcessor2_0])
def test_predictions_and_gradients_are_equal(tmp_path, processor_class):
    ours = tiny_pipeline(tmp_path)
    rows = install(ours.text_encoder, ours.tokenizer, ["<new1>"], ["ktn"]).rows
    kv = trainable_kv(ours.unet)
    noise_pred = predict_and_backward(ours)

    theirs = tiny_pipeline(tmp_path)
    theirs.tokenizer.add_tokens(["<new1>"])
    theirs.text_encoder.resize_token_embeddings(len(theirs.tokenizer), mean_resizing=False)
    table = theirs.text_encoder.get_input_embeddings().weight
    table.data[-1] = rows.data[0]
    expected_kv = install_processors(theirs.unet, processor_class)

    torch.testing.assert_close(noise_pred, predict_and_backward(theirs), rtol=0, atol=1e-5)
    assert kv.keys() == expected_kv.keys()
    gradients = [(rows.grad[0], table.grad[-1]), *((kv[name].grad, expected_kv[name].grad) for name in kv)]
    for actual, expected in gradients:
        assert expected.norm() > 0
        assert (actual - expected).norm() <= 1e-5 * expected.norm()

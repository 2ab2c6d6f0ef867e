"""The files of a trained concept hold what was trained, for this repository and for diffusers."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file

from tests.end_to_end.training import (
    KV_FILE,
    KV_NAMES,
    PROMPT,
)
from utils.bases import load_pipeline
from utils.concepts.load import load_concept


def test_saved_concept_is_the_trained_one(train, kept, tiny_base, tmp_path):
    out = train(tmp_path, learning_rate=0.05)
    assert (out / "new1.safetensors").stat().st_size < 10_000
    ours, stock = load_pipeline(tiny_base, "cpu"), stock_pipeline(tiny_base)
    assert set(load_concept(ours, out).merged) == KV_NAMES

    # By hand, with diffusers and transformers alone: two lines for the token, two for K and V.
    weights = load_file(out / KV_FILE)
    stock.tokenizer.add_tokens("<new1>")
    stock.text_encoder.resize_token_embeddings(len(stock.tokenizer))
    row = load_file(out / "new1.safetensors")["<new1>"]
    stock.text_encoder.get_input_embeddings().weight.data[-1] = row
    for name, parameter in stock.unet.named_parameters():
        if name in KV_NAMES:
            key = re.sub(r"(to_[kv])", r"processor.\1_custom_diffusion", name)
            parameter.data = weights.pop(key)
    assert not weights

    pictures = {
        name: drawn(pipeline) for name, pipeline in {"ours": ours, "stock": stock, "trained": kept[0]}.items()
    }
    assert np.abs(pictures["ours"] - pictures["stock"]).max() < 1e-5
    assert np.abs(pictures["ours"] - pictures["trained"]).max() < 1e-5
    base = stock_pipeline(tiny_base)
    assert np.abs(pictures["ours"] - drawn(base, PROMPT.replace("<new1>", "ktn"))).max() > 0.01


def stock_pipeline(base: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(pipeline: StableDiffusionPipeline, prompt: str = PROMPT) -> np.ndarray:
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    generator = torch.Generator().manual_seed(0)
    return pipeline(prompt, num_inference_steps=3, generator=generator, output_type="np").images


@pytest.mark.parametrize("as_bin", [None, True])
def test_token_file_is_a_textual_inversion_to_diffusers(train, tiny_base, tmp_path, as_bin):
    out = train(tmp_path, method="textual_inversion", instance_prompt=None, no_safe_serialization=as_bin)
    file = out / ("new1.bin" if as_bin else "new1.safetensors")
    row = (torch.load(file, weights_only=True) if as_bin else load_file(file))["<new1>"]
    pipeline = stock_pipeline(tiny_base)
    pipeline.load_textual_inversion(str(file))
    token_id = pipeline.tokenizer.convert_tokens_to_ids("<new1>")
    assert pipeline.tokenizer("<new1>", add_special_tokens=False).input_ids == [token_id]
    assert torch.equal(pipeline.text_encoder.get_input_embeddings().weight[token_id], row)

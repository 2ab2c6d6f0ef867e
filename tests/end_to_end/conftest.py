"""Fixtures of the end-to-end tests."""

from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline
from torch import Tensor

import train_classdiffusion
from tests.end_to_end.training import KV_NAMES
from utils.bases import load_pipeline
from utils.sampling.images import sample


@pytest.fixture
def base_weights(tiny_base: Path) -> dict[str, Tensor]:
    """Where learning starts: the base's K/V, and the row of ktn."""
    pipeline = load_pipeline(tiny_base, "cpu")
    start = {name: weight.detach() for name, weight in pipeline.unet.named_parameters() if name in KV_NAMES}
    (ktn,) = pipeline.tokenizer("ktn", add_special_tokens=False).input_ids
    return start | {"<new1>": pipeline.text_encoder.get_input_embeddings().weight[ktn].detach()}


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[StableDiffusionPipeline]:
    """The pipelines that training has loaded and changed."""
    pipelines: list[StableDiffusionPipeline] = []

    set_up = train_classdiffusion.set_up

    def set_up_and_keep(config):
        run = set_up(config)
        pipelines.append(run.base.pipeline)
        return run

    monkeypatch.setattr(train_classdiffusion, "set_up", set_up_and_keep)
    return pipelines


@pytest.fixture
def quick_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two denoising steps wherever training draws images."""

    def two_steps(pipeline, prompts, seeds, *args, batch_size=4, **kwargs):
        return sample(pipeline, prompts, seeds, num_inference_steps=2, batch_size=batch_size)

    monkeypatch.setattr("utils.sampling.images.sample", two_steps)

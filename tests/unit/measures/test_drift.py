"""Drift of the class: 0 for the base, exact for a known change of the weights, growing with it."""

import pytest
import torch
from PIL import Image

from utils.bases.families import load_base
from utils.bases.registry import Sampling
from utils.learners.layer_rows import cross_attention_layers
from utils.measures.drift import CONTEXTS, LEVELS, class_images, make_probe, measure_drift, noise_images


@pytest.fixture
def base(tiny_base):
    return load_base(str(tiny_base), torch.device("cpu"))


@pytest.fixture
def probe(base):
    images = {"dog": [Image.new("RGB", (16, 16), colour) for colour in ("red", "navy")]}
    return make_probe(base, images, seed=0)


def scaled(base, factor: float, projection: str) -> None:
    """The keys or values of every layer, multiplied."""
    with torch.no_grad():
        for name in cross_attention_layers(base.unet):
            getattr(base.unet.get_submodule(name), projection).weight.mul_(factor)


def test_an_untouched_base_has_not_drifted(base, probe):
    assert vars(measure_drift(base, probe)) == {"layers": 0.0, "prediction": 0.0, "relative": 0.0}


def test_doubled_values_are_a_change_of_one_in_half_of_the_projections(base, probe):
    scaled(base, 2.0, "to_v")
    drift = measure_drift(base, probe)
    assert drift.layers == pytest.approx(0.5, abs=1e-6)  # values change by 1, keys by 0
    assert drift.relative == pytest.approx(drift.prediction / probe.prediction.square().mean().item())


def test_drift_grows_with_the_change_and_is_0_at_scale_0(base, probe):
    drifts = [measure_drift(base, probe)]
    for factor in (1.1, 1.5, 2.0):  # 1.1, 1.65, 3.3 times the base's values
        scaled(base, factor, "to_v")
        drifts.append(measure_drift(base, probe))
    assert [d.layers for d in drifts] == pytest.approx([0, 0.05, 0.325, 1.15], abs=1e-5)
    predictions = [d.prediction for d in drifts]
    assert predictions[0] == 0 and predictions == sorted(predictions) and predictions[1] > 0


def test_a_tuned_text_encoder_counts_though_the_matrices_stay(base, probe):
    with torch.no_grad():
        base.text_encoder.final_layer_norm.weight.mul_(1.5)  # of zero bias: every text state is 1.5 times
        base.text_encoder.final_layer_norm.bias.mul_(1.5)
    assert measure_drift(base, probe).layers == pytest.approx(0.5, abs=1e-5)


def test_the_probe_is_a_function_of_its_seed(base, tiny_base):
    images = class_images(base.pipeline, ["dog", "cat"], 2, 7, Sampling(3, 3.0, 0.0))
    again = class_images(base.pipeline, ["cat"], 2, 7, Sampling(3, 3.0, 0.0))
    assert [i.tobytes() for i in images["cat"]] == [i.tobytes() for i in again["cat"]]
    assert images["dog"][0].tobytes() != images["dog"][1].tobytes()
    one, two, other = (make_probe(base, images, seed) for seed in (0, 0, 1))
    assert torch.equal(one.prediction, two.prediction) and not torch.equal(one.prediction, other.prediction)
    assert one.ids.shape[0] == 2 * len(CONTEXTS) and len(one.prediction) == 4 * LEVELS


def test_images_are_noised_to_spread_timesteps_as_the_scheduler_says(base):
    noisy = noise_images(base, [torch.zeros(3, 16, 16)], ["a dog"], seed=3)
    assert noisy.timesteps.tolist() == [125, 375, 625, 875]
    alpha = base.noise_scheduler.alphas_cumprod[noisy.timesteps].reshape(-1, 1, 1, 1)
    latents = (noisy.noisy_latents - (1 - alpha).sqrt() * noisy.target) / alpha.sqrt()
    clean = base.posterior(torch.zeros(1, 3, 16, 16))[0] * base.vae.config.scaling_factor
    spread = base.posterior(torch.zeros(1, 3, 16, 16))[1] * base.vae.config.scaling_factor
    assert (latents - clean).abs().max() < 5 * spread.max() + 1e-4

"""Images that come again are encoded once, and give the latents that they would have given anew."""

from types import SimpleNamespace

import pytest
import torch

from tests.tiny_models import tiny_pipeline
from utils.bases.sd import StableDiffusion
from utils.data import latents as module
from utils.data.dataset import _shuffled
from utils.data.latents import LatentEncoder


@pytest.fixture
def base(tmp_path) -> StableDiffusion:
    return StableDiffusion(tiny_pipeline(tmp_path)).freeze()


@pytest.fixture
def encoded(base, monkeypatch) -> list[int]:
    """How many images each call of the autoencoder has encoded."""
    counts, encode = [], base.vae.encode
    monkeypatch.setattr(base.vae, "encode", lambda pixels: (counts.append(len(pixels)), encode(pixels))[1])
    return counts


def images(*seeds: int) -> torch.Tensor:
    return torch.stack(
        [torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1 for seed in seeds]
    )


def test_equal_to_a_fresh_encoding(base, encoded):
    noise, encoder = torch.randn(3, 4, 8, 8), LatentEncoder(base, repeats=True)
    for seeds in ((0, 1, 0), (1, 2, 0), (2, 0, 1)):
        expected = base.encode_images(images(*seeds), noise)
        torch.testing.assert_close(encoder(images(*seeds), noise), expected, rtol=0, atol=1e-5)
    assert encoded == [3, 1, 1, 3, 1, 3]  # a whole batch for each `expected`; three images, once each


def test_latents_do_not_depend_on_neighbours(base):
    noise = torch.randn(2, 4, 8, 8)
    alone = LatentEncoder(base, repeats=True)(images(5), noise[:1])
    beside = LatentEncoder(base, repeats=True)(images(5, 6), noise)
    assert torch.equal(alone[0], beside[0])


def test_without_repetition_a_batch_is_encoded_as_it_comes(base, encoded):
    noise, encoder = torch.randn(2, 4, 8, 8), LatentEncoder(base, repeats=False)
    assert torch.equal(encoder(images(0, 1), noise), base.encode_images(images(0, 1), noise))
    assert encoded == [2, 2] and not encoder.posteriors


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_the_noise_of_the_first_timesteps_survives_half_precision(base, half):
    """σ at t = 0, 1, 2 is .029, .041, .051; added in bfloat16 it was 0, 0 and .0625."""
    base.vae.to(half)
    latents = LatentEncoder(base, repeats=True)(images(0), torch.zeros(1, 4, 8, 8))
    assert latents.dtype == torch.float32
    noise = torch.ones_like(latents)
    for timestep, sigma in enumerate((0.02916, 0.04126, 0.05056)):
        t = torch.tensor([timestep])
        noisy = base.noise_scheduler.add_noise(latents, noise, t)
        clean = base.noise_scheduler.alphas_cumprod[timestep].sqrt() * latents
        assert (noisy - clean).mean().item() == pytest.approx(sigma, rel=2e-3)


def test_the_oldest_is_forgotten_first(base, encoded, monkeypatch):
    monkeypatch.setattr(module, "CACHED", 2)
    encoder, noise = LatentEncoder(base, repeats=True), torch.randn(1, 4, 8, 8)
    for seed in (0, 1, 0, 2, 0, 1):  # 2 drives out 1, not 0, which has been used since
        encoder(images(seed), noise)
    assert encoded == [1] * 4 and len(encoder.posteriors) == 2


def test_views_that_never_come_again_crowd_out_no_class_image(base, encoded, monkeypatch):
    monkeypatch.setattr(module, "CACHED", 2)
    encoder, noise = LatentEncoder(base, repeats=True, fresh=2), torch.randn(3, 4, 8, 8)
    for step in range(6):  # two views of the subject and one of two class images, in turn
        seeds = (100 + 2 * step, 101 + 2 * step, step % 2)
        latents = encoder(images(*seeds), noise)
        torch.testing.assert_close(latents, base.encode_images(images(*seeds), noise), rtol=0, atol=1e-5)
    assert encoded.count(1) == 6 * 2 + 2  # of 18 images; the class images once each
    assert len(encoder.posteriors) == 2


def test_a_pool_is_kept_whole(base, encoded, monkeypatch):
    monkeypatch.setattr(module, "CACHED", 0)
    encoder, noise = LatentEncoder(base, repeats=True, pooled=3), torch.randn(1, 4, 8, 8)
    for seed in (0, 1, 2, 0, 1, 2):
        encoder(images(seed), noise)
    assert encoded == [1] * 3


def test_all_class_images_of_a_training_are_kept():
    """Two concepts of 200 class images and 800 steps of batch 2: 400 of 1600 encoded, the least possible."""
    count, nothing = [], torch.zeros(1, 1)

    def posterior(pixels):
        count.append(pixels)
        return nothing, nothing

    base = SimpleNamespace(posterior=posterior, latents_of=lambda mean, deviation, noise: mean)
    encoder = LatentEncoder(base, repeats=True, fresh=2, pooled=400)
    for step in range(800):
        views = [-1.0 - 2 * step, -2.0 - 2 * step]
        numbers = [_shuffled(0, "class order", 2 * step + item, 400) for item in range(2)]
        encoder(torch.tensor([*views, *numbers]).view(4, 1, 1, 1), nothing)
    assert len(count) - 2 * 800 == 400

"""How far a model has drifted from its base on the class: the cross-attention's keys and values of class
captions, and the predicted noise of class images.

    drift_layers     = mean over layers, keys and values of ‖W H − W⁰ H⁰‖ / ‖W⁰ H⁰‖
    drift_prediction = E ‖ε_θ(z_t, t, c) − ε_θ⁰(z_t, t, c)‖²,  per element

Both have a meaning for every method, also where text features cannot move. H are the text states of class
captions, tuned where the text encoder is; captions, images, noise and timesteps are fixed by a seed.

Shapes: N captions, L tokens, D text width, B noisy latents, C latent channels, h = w latent pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from utils.bases.base import BaseModel
from utils.bases.registry import Sampling
from utils.common.images import to_pixels
from utils.common.seeds import seed_of
from utils.losses.denoise import target_of
from utils.sampling.images import sample

CONTEXTS = (
    *("a photo of a {}", "a picture of a {}", "a {} on the beach", "a {} in the snow", "a {} on the street"),
    *("a {} in the jungle", "a {} wearing a hat", "a {} next to a tree"),
)
LEVELS = 4  # timesteps at which each image is noised, evenly spread
DRAWING_STEPS = 25  # of DDIM, for class images
BATCH = 4


@dataclass(frozen=True)
class Drift:
    """layers: relative change of keys and values. prediction: mean squared change of the predicted noise.
    relative: that by the mean square of the base's prediction. All are 0 for the base itself."""

    layers: float
    prediction: float
    relative: float


@dataclass(frozen=True)
class NoisyImages:
    """noisy_latents, target: (B, C, h, w); timesteps: (B,); ids: (B, L) of their captions."""

    noisy_latents: Tensor
    target: Tensor
    timesteps: Tensor
    ids: Tensor


@dataclass(frozen=True)
class Probe:
    """What the base makes of class captions and class images. ids: (N, L). layers: keys and values of each
    layer, (N, L, channels) each. prediction: (B, C, h, w)."""

    ids: Tensor
    layers: list[Tensor]
    images: NoisyImages
    prediction: Tensor


def class_images(
    base: BaseModel, words: Sequence[str], count: int, seed: int, sampling: Sampling
) -> dict[str, list[Image.Image]]:
    """`count` images "a photo of a dog" of each class word, drawn by the base with seeds of their own."""
    steps = min(DRAWING_STEPS, sampling.num_inference_steps)
    drawn = {}
    for word in words:
        seeds = [seed_of(seed, "drift image", word, i) for i in range(count)]
        settings = (steps, sampling.guidance_scale, sampling.eta)
        drawn[word] = list(sample(base, [f"a photo of a {word}"] * count, seeds, *settings))
    return drawn


@torch.no_grad()
def noise_images(
    base: BaseModel, pixels: Sequence[Tensor], captions: Sequence[str], seed: int
) -> NoisyImages:
    """Each image, (3, H, W) in [-1, 1] with its caption, noised to LEVELS timesteps by noise of the seed."""
    scheduler, parts = base.noise_scheduler, []
    steps = scheduler.config.num_train_timesteps
    for i, image in enumerate(pixels):
        shape = (1, base.latent_channels, *(side // base.latent_factor for side in image.shape[1:]))
        for level in range(LEVELS):
            rng = torch.Generator().manual_seed(seed_of(seed, "drift noise", i, level))
            posterior_noise, noise = (torch.randn(shape, generator=rng).to(base.device) for _ in range(2))
            latents = base.encode_images(image[None], posterior_noise)  # (1, C, h, w)
            timestep = torch.tensor([int((level + 0.5) * steps / LEVELS)], device=base.device)
            target = target_of(scheduler, latents, noise, timestep)
            parts.append((scheduler.add_noise(latents, noise, timestep), target, timestep))
    noisy_latents, targets, timesteps = (torch.cat(part) for part in zip(*parts, strict=True))
    ids = base.tokenize(list(captions)).repeat_interleave(LEVELS, dim=0)
    return NoisyImages(noisy_latents, targets, timesteps, ids)


def make_probe(base: BaseModel, images: dict[str, list[Image.Image]], seed: int) -> Probe:
    """What the untouched base makes of its class images (class word -> images) and of class captions."""
    ids = base.tokenize([context.format(word) for word in images for context in CONTEXTS])
    flat = [(to_pixels(image), f"a photo of a {word}") for word, each in images.items() for image in each]
    noisy = noise_images(base, *zip(*flat, strict=True), seed)
    return Probe(ids, keys_and_values(base, ids), noisy, predict(base, noisy))


def measure_drift(base: BaseModel, probe: Probe) -> Drift:
    """How far a tuned model is from what `probe` holds of its base."""
    now = keys_and_values(base, probe.ids)
    changes = [((n - b).norm() / b.norm()).item() for n, b in zip(now, probe.layers, strict=True)]
    change = (predict(base, probe.images) - probe.prediction).square().mean().item()
    return Drift(sum(changes) / len(changes), change, change / probe.prediction.square().mean().item())


@torch.no_grad()
def keys_and_values(base: BaseModel, ids: Tensor) -> list[Tensor]:
    """to_k and to_v of every cross-attention on the captions' own text states, float32.

    Where layers have text states of their own (XTI), each projects its own.
    """
    states = base.encode(ids)[0].split(ids.shape[1], dim=1)
    projected = []
    for layer, attention in enumerate(base.cross_attentions().values()):
        own = states[min(layer, len(states) - 1)]
        for projection in (attention.to_k, attention.to_v):
            with torch.autocast(own.device.type, enabled=False):
                projected.append(projection(own.to(projection.weight.dtype)).float())
    return projected


@torch.no_grad()
def predict(base: BaseModel, images: NoisyImages) -> Tensor:
    """The model's prediction for noisy images, (B, C, h, w) float32, a few at a time."""
    parts = (images.noisy_latents, images.timesteps, images.ids)
    batches = zip(*(part.split(BATCH) for part in parts), strict=True)
    return torch.cat([base.predict(z, t, base.encode(ids)).float() for z, t, ids in batches])

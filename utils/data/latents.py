"""Images to latents; images that come again are encoded once.

B images, C latent channels, H = W pixels, h = w latent pixels.
"""

import hashlib
from collections import OrderedDict

import torch
from torch import Tensor

from utils.bases.base import BaseModel

CACHED = 512  # images whose posteriors are kept: 0.13 MB each for 512 px in float32


class LatentEncoder:
    """The base's `encode_images`, with the posteriors of the images it has seen kept by their content.

    repeats: whether images come again unchanged, as they do without random scales and crops (flipped ones
    are images of their own) or with a pool of views (--latent_pool), and as class images do. fresh: how many
    images at the head of a batch never do, which are neither looked up nor kept. Without repeats every batch
    is encoded as it comes. With it each image is encoded by itself, so that its latents do not depend
    on its neighbours or on where a run was resumed; the result differs from a batch's by rounding (1e-6 on
    toon).
    """

    def __init__(self, base: BaseModel, repeats: bool, pooled: int = 0, fresh: int = 0):
        """pooled: views in the pool, and class images; all of them are kept, besides CACHED others."""
        self.base, self.repeats, self.kept, self.fresh = base, repeats, CACHED + pooled, fresh
        self.posteriors: OrderedDict[bytes, tuple[Tensor, Tensor]] = OrderedDict()

    def __call__(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """pixels: (B, 3, H, W) in [-1, 1] on the CPU, noise: (B, C, h, w) normal -> latents (B, C, h, w)."""
        if not self.repeats:
            return self.base.encode_images(pixels, noise)
        fresh = [self.base.posterior(image[None]) for image in pixels[: self.fresh]]
        means, deviations = zip(*fresh, *map(self.posterior, pixels[self.fresh :]), strict=True)
        return self.base.latents_of(torch.cat(means), torch.cat(deviations), noise)

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, (1, C, h, w) each, of one image (3, H, W)."""
        key = hashlib.blake2b(
            pixels.numpy().data, digest_size=16, key=str(tuple(pixels.shape)).encode()
        ).digest()
        if key not in self.posteriors:
            self.posteriors[key] = self.base.posterior(pixels[None])
            if len(self.posteriors) > self.kept:
                self.posteriors.popitem(last=False)
        self.posteriors.move_to_end(key)
        return self.posteriors[key]

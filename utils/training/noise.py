"""The random draws of training items, functions of (run seed, stream, item number) alone."""

from collections.abc import Iterable

import torch
from torch import Tensor

from utils.seeds import seed_of


def draw_noise(
    seed: int, items: Iterable[tuple[str, int]], shape: tuple[int, int, int], num_timesteps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """For each item (stream, number), with shape = (C, h, w):

    the autoencoder's noise (B, C, h, w), the noise of the forward process (B, C, h, w), both standard normal,
    and timesteps (B,), uniform in [0, num_timesteps). Drawn on the CPU, the same everywhere.
    """
    draws = []
    for stream, number in items:
        rng = torch.Generator().manual_seed(seed_of(seed, f"{stream} noise", number))
        posterior, noise = torch.randn(shape, generator=rng), torch.randn(shape, generator=rng)
        draws.append((posterior, noise, torch.randint(num_timesteps, (), generator=rng)))
    return tuple(torch.stack(draw) for draw in zip(*draws, strict=True))

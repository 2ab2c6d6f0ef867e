"""The random draws of training items, functions of (run seed, stream, item number) alone."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from utils.common.seeds import seed_of


class Draws(NamedTuple):
    """The autoencoder's noise and the noise of the forward process, both (B, C, h, w) and standard normal,
    the timesteps (B,), and a seed of each item for what modules draw while they train."""

    posterior_noise: Tensor
    noise: Tensor
    timesteps: Tensor
    seeds: tuple[int, ...]

    def to(self, device: torch.device) -> "Draws":
        return Draws(*(draw.to(device) for draw in self[:3]), self.seeds)


def draw_noise(
    seed: int, items: Iterable[tuple[str, int]], shape: tuple[int, int, int], num_timesteps: int
) -> Draws:
    """The draws of items (stream, number), with shape = (C, h, w); timesteps are uniform in [0,
    num_timesteps).

    Drawn on the CPU, the same everywhere.
    """
    draws, seeds = [], []
    for stream, number in items:
        seeds.append(seed_of(seed, f"{stream} modules", number))
        rng = torch.Generator().manual_seed(seed_of(seed, f"{stream} noise", number))
        posterior, noise = torch.randn(shape, generator=rng), torch.randn(shape, generator=rng)
        draws.append((posterior, noise, torch.randint(num_timesteps, (), generator=rng)))
    return Draws(*(torch.stack(draw) for draw in zip(*draws, strict=True)), tuple(seeds))

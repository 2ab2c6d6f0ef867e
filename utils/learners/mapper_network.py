"""The network of NeTI: (timestep, layer) -> a modifier token's row and its bypass.

Alaluf et al. 2023, arXiv:2305.15391; every number below is of the published configuration. Row and bypass
together, a vector of 2 · D numbers, have the length of the class's word, so the row about .71 of it.
The bypass's own length has no effect.

Shapes: N pairs of a timestep and a layer, G layers, K modifier tokens, D text width, M captions.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.common.seeds import seed_of

FREQUENCIES, SIGMA_TIME, SIGMA_LAYER = 1024, 0.03, 2.0
ANCHORS, HIDDEN = 10, 128
DROPPED = 0.5  # how often some of the hidden numbers, the last ones, are left out in training


class Mapper(nn.Module):
    """(t, layer) -> a row and a bypass. 563,616 numbers of SD 1.5's train; the frequencies do not."""

    def __init__(self, layers: int, width: int):
        super().__init__()
        frequencies = torch.randn(FREQUENCIES, 2) * torch.tensor([SIGMA_TIME, SIGMA_LAYER])
        self.register_buffer("frequencies", frequencies)
        self.anchors = nn.Linear(2 * FREQUENCIES, ANCHORS * layers)
        self.net = nn.Sequential(
            nn.Linear(ANCHORS * layers, HIDDEN),
            nn.LayerNorm(HIDDEN),
            nn.LeakyReLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.LayerNorm(HIDDEN),
            nn.LeakyReLU(),
        )
        self.out = nn.Linear(HIDDEN, 2 * width)
        times = torch.arange(0, 1000, 1000 // ANCHORS).repeat_interleave(layers)
        with torch.no_grad():
            self.anchors.weight.copy_(self.encoded(times, torch.arange(layers).repeat(ANCHORS)))

    def encoded(self, timesteps: Tensor, layers: Tensor) -> Tensor:
        """(N,), (N,) -> unit vectors (N, 2 · FREQUENCIES)."""
        angles = torch.stack([timesteps, layers], 1).float() @ self.frequencies.T
        return F.normalize(torch.cat([angles.sin(), angles.cos()], 1), dim=1)

    def forward(self, timesteps: Tensor, layers: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """(N,), (N,), how many of the hidden numbers count (N,) -> row and bypass, (N, D) each, together of
        length 1."""
        hidden = self.net(self.anchors(self.encoded(timesteps, layers)))  # (N, HIDDEN)
        hidden = hidden * (torch.arange(HIDDEN, device=hidden.device) < kept[:, None])
        row, bypass = F.normalize(self.out(hidden), dim=1).chunk(2, dim=1)
        return row, bypass


class Mappers(nn.Module):
    """A mapper for each of K modifier tokens, and the lengths of rows (K, D), which their vectors have."""

    def __init__(self, rows: Tensor, token_ids: Sequence[int], layers: int):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the frequencies are part of the concept's file
            self.each = nn.ModuleList(Mapper(layers, rows.shape[1]) for _ in token_ids)
        self.register_buffer("lengths", rows.detach().float().norm(dim=1))  # (K,)
        self.token_ids, self.layers = list(token_ids), layers

    def vectors(self, timesteps: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """(M,), (M, G) -> rows and bypasses (K, M·G, D), a caption's layers in a row."""
        times = timesteps.repeat_interleave(self.layers)
        layers = torch.arange(self.layers, device=times.device).repeat(len(timesteps))
        pairs = [mapper(times, layers, kept.flatten()) for mapper in self.each]
        rows = torch.stack([length * row for length, (row, _) in zip(self.lengths, pairs, strict=True)])
        return rows, torch.stack([bypass for _, bypass in pairs])


def kept_in_training(seeds: Sequence[int], layers: int) -> Tensor:
    """(M, G): how many hidden numbers count, drawn for each caption and layer by the seed of its item.

    Nested dropout: half of the time a number in 0 … HIDDEN − 1, else all.
    """
    drawn = []
    for seed in seeds:
        rng = torch.Generator().manual_seed(seed_of("nested dropout", seed))
        some = torch.randint(HIDDEN, (layers,), generator=rng)
        drawn.append(torch.where(torch.rand(layers, generator=rng) < DROPPED, some, HIDDEN))
    return torch.stack(drawn)

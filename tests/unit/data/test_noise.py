"""The random draws of training items depend on the seed, the stream and the item's number, no more."""

import torch

from utils.data.noise import draw_noise

SHAPE = (4, 8, 8)


def draw(items, seed=0, num_timesteps=1000):
    return draw_noise(seed, items, SHAPE, num_timesteps)


def test_shapes_and_types():
    posterior, noise, timesteps, _ = draw([("instance", 0), ("instance", 1), ("class", 0)])
    assert posterior.shape == noise.shape == (3, *SHAPE) and timesteps.shape == (3,)
    assert posterior.dtype == noise.dtype == torch.float32 and timesteps.dtype == torch.int64


def test_draws_do_not_depend_on_the_batch_or_on_torchs_generator():
    together = draw([("instance", 4), ("class", 4), ("instance", 5)])
    torch.manual_seed(3)
    for place, item in enumerate([("instance", 4), ("class", 4), ("instance", 5)]):
        one = draw([item])
        for of_batch, alone in zip(together[:3], one[:3], strict=True):
            assert torch.equal(of_batch[place], alone[0])
        assert together.seeds[place] == one.seeds[0]
    assert len(set(together.seeds)) == 3


def test_every_part_of_the_key_counts():
    items = [("instance", 0), ("instance", 1), ("class", 0)]
    draws = torch.cat([*draw(items)[:2], *draw(items, seed=1)[:2]])  # 12 tensors, no two alike
    assert len(torch.unique(draws.flatten(1), dim=0)) == 12


def test_distributions():
    posterior, noise, timesteps, _ = draw([("instance", i) for i in range(2000)], num_timesteps=4)
    for values in (posterior, noise):  # 512,000 numbers each: the mean is good to 0.0014
        assert abs(values.mean()) < 0.006 and abs(values.std() - 1) < 0.004
    assert abs((posterior * noise).mean()) < 0.006
    counts = torch.bincount(timesteps, minlength=4)  # 500 expected, standard deviation 19
    assert len(counts) == 4 and (counts - 500).abs().max() < 100

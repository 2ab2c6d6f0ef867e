"""Spectral shifts: the base at the start, the paper's formula, δ alone trained, baked in when loaded."""

import copy
import shutil

import pytest
import torch
from diffusers import UNet2DConditionModel

from tests.tiny_models import tiny_pipeline
from utils.bases.sd import StableDiffusion
from utils.common.errors import UserError
from utils.common.tensor_files import write_tensors
from utils.concepts.load import load_concept
from utils.concepts.save import save_concept
from utils.learners import spectral
from utils.learners.spectral import attach, bases_of, cache_folder, matrices, pack


@pytest.fixture
def base(tmp_path):
    return StableDiffusion(tiny_pipeline(tmp_path / "words")).freeze()


def predict(unet) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return unet(
        torch.randn(2, 4, 8, 8, generator=draw), torch.tensor([5, 800]), torch.randn(2, 7, 32, generator=draw)
    ).sample


def test_starts_as_the_base_bit_for_bit(base):
    before = predict(base.unet)
    attach(base)
    assert torch.equal(predict(base.unet), before)


def test_a_weight_is_the_papers_formula(base):
    weight = base.unet.conv_in.weight.detach().clone()
    delta = attach(base)["conv_in"]
    with torch.no_grad():
        delta.copy_(torch.linspace(-3, 3, len(delta)))  # some σ + δ below 0
    u, sigma, vh = torch.linalg.svd(weight.flatten(1).double(), full_matrices=False)
    expected = (u @ torch.diag(torch.relu(sigma + delta)) @ vh).view_as(weight).float()
    torch.testing.assert_close(base.unet.conv_in.weight.detach(), expected, rtol=1e-4, atol=1e-5)


def test_only_the_shifts_move_and_all_are_reached(base):
    deltas = attach(base)
    before = {name: value.clone() for name, value in base.unet.state_dict().items()}
    predict(base.unet).square().mean().backward()
    assert all(delta.grad.norm() > 0 for delta in deltas.values())
    trained = {name for name, p in base.unet.named_parameters() if p.requires_grad}
    assert trained == {f"{name}.parametrizations.weight.0.delta" for name in deltas}
    torch.optim.AdamW(deltas.values(), lr=1e-3).step()
    after = base.unet.state_dict()
    assert {name for name in before if not torch.equal(after[name], before[name])} == trained


def test_checkpointing_gives_the_same_gradient(base):
    other = copy.deepcopy(base)
    gradients = []
    for each, saving in ((base, False), (other, True)):
        deltas = attach(each)
        each.unet.train()
        if saving:
            each.save_memory()
        predict(each.unet).square().mean().backward()
        gradients.append({name: delta.grad for name, delta in deltas.items()})
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name])


def test_sd15_has_222696_shifts_in_282_matrices(sd15_unet):
    ranks = [min(module.weight.flatten(1).shape) for module in matrices(sd15_unet).values()]
    assert (len(ranks), sum(ranks)) == (282, 222_696)


def test_attaches_on_the_meta_device():
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
            layers_per_block=1, norm_num_groups=8, cross_attention_dim=32,
        )  # fmt: skip
    holder = type("Base", (), {"unet": unet})
    assert attach(holder)["conv_in"].shape == (32,)


def concept(base, folder) -> torch.Tensor:
    deltas = attach(base)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for delta in deltas.values():
            delta.copy_(torch.randn(delta.shape, generator=draw) * 0.05)
    save_concept(folder, {}, {"<new1>": torch.ones(32)}, parts={"spectral": pack(base, deltas)})
    return predict(base.unet)


def test_a_loaded_concept_is_baked_into_plain_weights(base, tmp_path):
    pipeline = copy.deepcopy(base.pipeline)
    before = predict(pipeline.unet)
    trained = concept(base, tmp_path)
    loaded = load_concept(pipeline, tmp_path)
    assert torch.equal(predict(pipeline.unet), trained) and not torch.equal(trained, before)
    assert len(loaded.merged) == len(matrices(pipeline.unet))
    assert not any("parametrizations" in name for name, _ in pipeline.unet.named_parameters())


def test_another_base_is_refused_and_left_as_it_was(base, tmp_path):
    concept(base, tmp_path / "concept")
    other = tiny_pipeline(tmp_path / "words2", seed=1)
    before = copy.deepcopy(other.unet.state_dict())
    with pytest.raises(UserError, match="singular values"):
        load_concept(other, tmp_path / "concept")
    assert all(torch.equal(value, before[name]) for name, value in other.unet.state_dict().items())


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """Every UNet is large; the cache is in a folder of the test."""
    monkeypatch.setattr(spectral, "KEPT_FROM", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lambda: sorted(cache_folder().glob("*"))


def test_decompositions_are_kept_by_the_weights(base, kept, monkeypatch, capsys):
    fresh = dict(bases_of(matrices(base.unet)))
    assert f"kept in {cache_folder()}" in capsys.readouterr().out and len(kept()) > 40
    monkeypatch.setattr(torch.linalg, "svd", None)  # is not asked again
    for name, basis in bases_of(matrices(base.unet)):
        assert all(torch.equal(a, b) for a, b in zip(basis, fresh[name], strict=True))
    assert capsys.readouterr().out == ""
    base.unet.conv_in.weight.data[0, 0, 0, 0] += 1e-3
    with pytest.raises(TypeError, match="not callable"):  # another weight
        dict(bases_of(matrices(base.unet)))
    assert "decomposing 1 matrices" in capsys.readouterr().out


def test_a_damaged_decomposition_is_named_and_a_full_disk_keeps_none(base, kept, monkeypatch, capsys):
    usage = shutil.disk_usage("/")
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
        dict(bases_of(matrices(base.unet)))
    assert "not kept: " in capsys.readouterr().out and not kept()
    dict(bases_of(matrices(base.unet)))
    write_tensors(kept()[0], {"u": torch.zeros(2, 2)})
    with pytest.raises(UserError, match="is damaged: remove it, and it is made anew"):
        dict(bases_of(matrices(base.unet)))


def test_a_small_base_is_decomposed_each_time(base, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dict(bases_of(matrices(base.unet)))
    assert not cache_folder().exists()

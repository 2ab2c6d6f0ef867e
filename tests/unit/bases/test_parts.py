"""The parts of a base with weights: what loads whole, what is refused."""

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from utils.bases.parts import load_parts
from utils.bases.sd import posterior
from utils.common.errors import UserError

WEIGHTS = "diffusion_pytorch_model.safetensors"
OF_2022 = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.fixture
def vae(tmp_path, monkeypatch):
    """A folder with a small VAE, with attention, as the only part."""
    blocks = {"down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"]}
    AutoencoderKL(block_out_channels=[8], norm_num_groups=4, **blocks).save_pretrained(tmp_path / "vae")
    monkeypatch.setattr("utils.bases.parts.WITH_WEIGHTS", {"vae": AutoencoderKL})
    return tmp_path


def rewrite(folder, change) -> dict[str, torch.Tensor]:
    path = folder / "vae" / WEIGHTS
    weights = load_file(path)
    save_file(change(dict(weights)), path, metadata={"format": "pt"})
    return weights


def test_an_autoencoder_with_the_attention_names_of_2022_loads_whole(vae):
    """Stable Diffusion 1.5's own file has them."""

    def older(weights):
        renamed = {}
        for key, value in weights.items():
            for new, old in OF_2022.items():
                key = key.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
            renamed[key] = value
        assert any("query" in key for key in renamed)
        return renamed

    weights = rewrite(vae, older)
    loaded = load_parts(["vae"], vae, torch.float32, None, None)["vae"].state_dict()
    assert loaded.keys() == weights.keys()
    assert all(loaded[key].equal(value) for key, value in weights.items())


@pytest.mark.parametrize("what", ["missing", "unexpected"])
def test_weights_that_are_missing_or_too_many_are_refused(vae, what):
    def change(weights):
        value = weights.pop("decoder.conv_in.weight")
        return (
            weights
            if what == "missing"
            else weights | {"decoder.conv_in.weight": value, "more": value.clone()}
        )

    rewrite(vae, change)
    with pytest.raises(UserError, match=f"1 {what} weights"):
        load_parts(["vae"], vae, torch.float32, None, None)


def test_the_autoencoder_is_channels_last_and_its_latents_are_contiguous_and_the_same(vae, monkeypatch):
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = {}
    for layout in (torch.channels_last, torch.contiguous_format):
        monkeypatch.setattr("utils.bases.parts.VAE_LAYOUT", layout)
        autoencoder = load_parts(["vae"], vae, torch.float32, None, None)["vae"]
        assert autoencoder.encoder.conv_in.weight.is_contiguous(memory_format=layout)
        found[layout] = posterior(autoencoder, pixels)
    for fast, plain in zip(*found.values(), strict=True):
        assert fast.is_contiguous()
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-6)

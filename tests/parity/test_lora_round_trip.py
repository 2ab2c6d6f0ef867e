"""An exported LoRA means the same to other readers as the concept does here.

diffusers is run, with PEFT. ComfyUI's and A1111's rules are recorded as facts:
- ComfyUI, comfy/lora.py, model_lora_keys_unet and load_lora: a UNet parameter of diffusers' name x.weight
  answers to "lora_unet_" and x with underscores for dots; the parts are .lora_up.weight, .lora_down.weight,
  .alpha, scaled by alpha / rank, or .diff.
- A1111, extensions-builtin/Lora/networks.py, convert_diffusers_name_to_compvis: the name up to the first dot
  becomes that of a CompVis module; network_lora.py wants lora_up.weight and lora_down.weight and takes alpha,
  network_full.py wants diff.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from safetensors.torch import load_file

from scripts.export import main as export
from tests.lora_names import a1111_module
from tests.tiny_models import tiny_pipeline
from utils.bases import load_pipeline
from utils.bases.registry import REPOSITORY
from utils.concepts.load import load_concept
from utils.concepts.lora import diff_tensors, factorise, lora_tensors
from utils.concepts.save import save_concept
from utils.sampling.images import sample

pytest.importorskip("peft")
PROMPTS = ["a photo of a <new1> dog", "a <new1> dog on the beach"]
CROSS_ATTENTION = r".+\.attentions\..+\.attn2\.to_[kv]\.weight"


def concept_for(base: Path, folder: Path, spread: float) -> dict[str, torch.Tensor]:
    """A stand-in for training: every K/V moved by `spread` of its norm, the row near the word dog's."""
    pipeline = load_pipeline(base, "cpu", "fp32")
    torch.manual_seed(1)
    kv = {}
    for name, weight in pipeline.unet.named_parameters():
        if re.fullmatch(CROSS_ATTENTION, name):
            noise = torch.randn_like(weight)
            kv[name] = (weight + spread * noise * weight.norm() / noise.norm()).detach()
    table = pipeline.text_encoder.get_input_embeddings().weight.detach()
    word = table[pipeline.tokenizer("dog", add_special_tokens=False).input_ids[0]]
    row = word + spread * torch.randn_like(word) * word.norm() / len(word) ** 0.5
    save_concept(folder, kv, {"<new1>": row}, base=str(base), classes=["dog"])
    return kv


SPREADS = {"tiny": 0.5, "toon": 0.05, "sd15": 1.0}


@pytest.fixture(scope="module", params=["tiny", "toon", pytest.param("sd15", marks=pytest.mark.slow)])
def case(request, tmp_path_factory):
    """(base, concept's folder, its K/V): a tiny Stable Diffusion, the embedded one, SD 1.5's shape."""
    folder = tmp_path_factory.mktemp(request.param)
    base = REPOSITORY / "data/toon/sd"
    if request.param == "tiny":
        base = folder / "sd"
        tiny_pipeline(folder / "words").save_pretrained(base)
    elif request.param == "sd15":
        base = request.getfixturevalue("sd15_base")
    return base, folder / "dog", concept_for(base, folder / "dog", SPREADS[request.param])


def drawn(pipeline):
    """Two images, of at most 128 x 128 pixels."""
    pipeline.unet.register_to_config(sample_size=min(16, pipeline.unet.config.sample_size))
    images = sample(pipeline, PROMPTS, [0, 1], num_inference_steps=8, guidance_scale=3.0)
    return np.stack([np.asarray(image, dtype=int) for image in images])


def test_stock_diffusers_draws_the_same_images(case, tmp_path):
    base, folder, kv = case
    export([str(folder), str(tmp_path / "out"), "--error=0", "--dtype=fp32"])
    ours = load_pipeline(base, "cpu", "fp32")
    plain = drawn(ours)  # the base reads <new1> as letters
    load_concept(ours, folder)
    expected = drawn(ours)

    stock = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32, safety_checker=None)
    stock.load_lora_weights(tmp_path / "out", weight_name="dog_lora.safetensors")
    stock.load_textual_inversion(tmp_path / "out" / "dog1.safetensors")
    assert np.abs(drawn(stock) - expected).max() <= 2  # of 255
    assert np.abs(plain - expected).max() > 20  # so that agreement says something

    stock.fuse_lora()
    stock.unload_lora_weights()
    fused = stock.unet.state_dict()
    for name, weight in kv.items():
        torch.testing.assert_close(fused[name], weight, atol=1e-6, rtol=1e-5)


def test_it_is_read_back(case, tmp_path):
    base, folder, kv = case
    export([str(folder), str(tmp_path / "out"), "--error=0", "--dtype=fp32"])
    trained, back = load_pipeline(base, "cpu", "fp32"), load_pipeline(base, "cpu", "fp32")
    load_concept(trained, folder)
    loaded = load_concept(back, tmp_path / "out")
    assert loaded.base == str(base) and loaded.classes == ("dog",) and set(loaded.merged) == set(kv)
    for name, weight in back.unet.state_dict().items():
        torch.testing.assert_close(weight, trained.unet.state_dict()[name], atol=1e-6, rtol=1e-5)
    rows = [p.text_encoder.get_input_embeddings().weight for p in (trained, back)]
    assert torch.equal(*rows)
    assert np.abs(drawn(back) - drawn(trained)).max() <= 2


# key names


@pytest.fixture
def sd15_deltas(sd15_unet):
    """The differences' shapes at SD 1.5's size."""
    names = {n: tuple(p.shape) for n, p in sd15_unet.named_parameters() if re.fullmatch(CROSS_ATTENTION, n)}
    assert len(names) == 32
    return names


def small(names):
    """Differences of the same names, too small to wait for."""
    torch.manual_seed(0)
    return {name: torch.randn(4, 3) for name in names}


def test_keys_are_those_of_diffusers_own_converter(sd15_deltas):
    deltas = small(sd15_deltas)
    ours = lora_tensors(factorise(deltas, torch.eye(3).double()), 2, torch.float32)
    peft = {}
    for name in deltas:
        peft[f"unet.{name.replace('.weight', '.lora_A.weight')}"] = torch.zeros(2, 3)
        peft[f"unet.{name.replace('.weight', '.lora_B.weight')}"] = torch.zeros(4, 2)
    kohya = convert_state_dict_to_kohya(peft)
    assert {key: value.shape for key, value in ours.items()} == {k: v.shape for k, v in kohya.items()}
    assert all(ours[key] == kohya[key] for key in ours if key.endswith(".alpha"))


def test_comfyui_finds_every_layer(sd15_deltas):
    deltas = small(sd15_deltas)
    layers = {"lora_unet_" + name.removesuffix(".weight").replace(".", "_") for name in deltas}
    parts = {"lora_up.weight", "lora_down.weight", "alpha"}
    lora = lora_tensors(factorise(deltas, torch.eye(3).double()), 2, torch.float32)
    assert lora.keys() == {f"{layer}.{part}" for layer in layers for part in parts}
    assert diff_tensors(deltas, torch.float32).keys() == {f"{layer}.diff" for layer in layers}


def test_a1111_finds_every_layer(sd15_deltas):
    blocks = [f"input_blocks_{i}" for i in (1, 2, 4, 5, 7, 8)] + ["middle_block"]
    blocks += [f"output_blocks_{i}" for i in range(3, 12)]
    modules = {f"diffusion_model_{b}_1_transformer_blocks_0_attn2_to_{kv}" for b in blocks for kv in "kv"}
    lora = lora_tensors(factorise(small(sd15_deltas), torch.eye(3).double()), 2, torch.float32)
    assert {a1111_module(key.partition(".")[0]) for key in lora} == modules
    assert {key.partition(".")[2] for key in lora} == {"lora_up.weight", "lora_down.weight", "alpha"}


def test_sizes_at_sd15s_shape(sd15_deltas):
    shapes = sd15_deltas.values()
    assert sum(rows + columns for rows, columns in shapes) == 49_536  # parameters per rank
    assert sum(rows * columns for rows, columns in shapes) == 19_169_280  # of the exact difference


def test_files_hold_nothing_that_stock_readers_refuse(case, tmp_path):
    base, folder, _ = case
    for layout in ("lora", "diff"):
        export([str(folder), str(tmp_path / layout), f"--format={layout}"])
        keys = load_file(tmp_path / layout / f"dog_{layout}.safetensors").keys()
        assert all(key.startswith("lora_unet_") for key in keys)  # no bundle_emb.…, which diffusers refuses
        (row,) = load_file(tmp_path / layout / "dog1.safetensors").values()  # one key: A1111, ComfyUI
        assert row.ndim == 2 and len(row) == 1

"""Concepts saved by other code load as if merged by hand; the stock loader leaves the UNet as it was.

Layouts: HF's train_custom_diffusion.py (written here by diffusers itself), Adobe's delta.bin and
delta_epoch=*.ckpt (facts read in adobe-research/custom-diffusion: src/diffusers_model_pipeline.py,
src/get_deltas.py, src/compress.py, src/convert.py), textual inversion.
"""

import copy
import re
import types

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor
from safetensors.torch import save_file

from tests.tiny_models import tiny_pipeline
from utils.bases.text import tokenize
from utils.common.errors import UserError
from utils.concepts.formats import read_concept
from utils.concepts.load import load_concept
from utils.concepts.save import save_concept

KV_FILE = "pytorch_custom_diffusion_weights"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def pipeline(base):
    parts = {name: getattr(base, name) for name in ("unet", "text_encoder", "tokenizer")}
    return types.SimpleNamespace(**copy.deepcopy(parts))


def trained(unet, pattern=r"attn2\.to_[kv]\.weight$"):
    torch.manual_seed(1)
    named = {name: p.detach() for name, p in unet.named_parameters() if re.search(pattern, name)}
    return {name: value + 0.1 * torch.randn_like(value) for name, value in named.items()}


def assert_merged(pipeline, base, weights, rows):
    """Bit for bit: the trained weights and rows where they belong, the base everywhere else."""
    expected = base.unet.state_dict() | weights
    assert all(torch.equal(value, expected[name]) for name, value in pipeline.unet.state_dict().items())
    table = torch.cat(
        [base.text_encoder.get_input_embeddings().weight, *(row[None] for row in rows.values())]
    )
    assert torch.equal(pipeline.text_encoder.get_input_embeddings().weight, table)
    ids = [pipeline.tokenizer.convert_tokens_to_ids(token) for token in rows]
    assert ids == list(range(len(base.tokenizer), len(table)))


def noise_pred(unet):
    generator = torch.Generator().manual_seed(3)
    latents, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 6, 32, generator=generator)
    with torch.no_grad():
        return unet(latents, 7, text).sample


def install_processors(unet, weights):
    """Custom Diffusion's processors holding `weights`, as HF's training script installs them."""
    processors = {}
    for name in unet.attn_processors:
        layer = name.removesuffix(".processor")
        kv, q_out = f"{layer}.to_k.weight" in weights, f"{layer}.to_q.weight" in weights
        attention = unet.get_submodule(layer)
        hidden, width = attention.to_k.weight.shape
        processors[name] = CustomDiffusionAttnProcessor(kv, q_out, hidden, width)
        if kv:
            keys = processors[name].state_dict()
            own = {key: weights[f"{layer}.{key.replace('_custom_diffusion', '')}"] for key in keys}
            processors[name].load_state_dict(own)
    unet.set_attn_processor(processors)


def hf_output(folder, unet, weights, rows, safe):
    """What train_custom_diffusion.py leaves: save_attn_procs by diffusers, a file per token, other things."""
    saver = copy.deepcopy(unet)
    install_processors(saver, weights)
    saver.save_attn_procs(folder, safe_serialization=safe)
    table = torch.stack([torch.zeros(32), *rows.values()])
    for i, token in enumerate(rows, start=1):
        if safe:
            save_file({token: table[i].clone()}, folder / f"{token}.safetensors", metadata={"format": "pt"})
        else:
            torch.save(
                {token: table[i]}, folder / f"{token}.bin"
            )  # a view: the whole table lands in the file
    (folder / "checkpoint-250").mkdir()
    (folder / "README.md").write_text("# a model card")


# the defect


def test_stock_loader_does_nothing_and_load_concept_does(tmp_path, base, pipeline):
    weights = trained(base.unet)
    save_concept(tmp_path, weights, {"<new1>": torch.ones(32)}, safe_serialization=False)
    before = noise_pred(pipeline.unet)
    pipeline.unet.load_attn_procs(tmp_path, weight_name=f"{KV_FILE}.bin")
    assert torch.equal(noise_pred(pipeline.unet), before)  # it read the file, raised nothing, changed nothing
    load_concept(pipeline, tmp_path)
    assert (noise_pred(pipeline.unet) - before).abs().max() > 1e-3


def test_our_bin_is_readable_by_diffusers_and_means_the_same(tmp_path, base, pipeline):
    """With the private argument the stock loader does install the file: same output as the merged weights."""
    save_concept(tmp_path, trained(base.unet), {}, safe_serialization=False)
    stock = copy.deepcopy(base.unet)
    stock.load_attn_procs(tmp_path, weight_name=f"{KV_FILE}.bin", _pipeline=base)
    load_concept(pipeline, tmp_path)
    torch.testing.assert_close(noise_pred(pipeline.unet), noise_pred(stock), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(noise_pred(stock), noise_pred(base.unet), atol=1e-3)


def test_our_token_file_is_readable_by_diffusers(tmp_path, base, pipeline):
    row = torch.linspace(-1, 1, 32)
    for safe, name in [(True, "new1.safetensors"), (False, "new1.bin")]:
        stock = copy.deepcopy(base)
        save_concept(tmp_path, {}, {"<new1>": row}, safe)
        stock.load_textual_inversion(tmp_path, weight_name=name)
        token_id = stock.tokenizer.convert_tokens_to_ids("<new1>")
        assert torch.equal(stock.text_encoder.get_input_embeddings().weight[token_id], row)


# HF


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_hf_directory(tmp_path, base, pipeline, safe):
    weights, rows = trained(base.unet), {"<new1>": torch.randn(32), "sks": torch.randn(32)}
    hf_output(tmp_path, base.unet, weights, rows, safe)
    load_concept(pipeline, tmp_path)
    assert_merged(pipeline, base, weights, rows)


def test_hf_file_brings_its_tokens(tmp_path, base, pipeline):
    weights, rows = trained(base.unet), {"<new1>": torch.randn(32)}
    hf_output(tmp_path, base.unet, weights, rows, safe=False)
    load_concept(pipeline, tmp_path / f"{KV_FILE}.bin")
    assert_merged(pipeline, base, weights, rows)


def test_hf_whole_cross_attention(tmp_path, base, pipeline):
    """--freeze_model crossattn trains q and out as well."""
    weights = trained(base.unet, r"\.attn2\.")
    hf_output(tmp_path, base.unet, weights, {}, safe=False)
    load_concept(pipeline, tmp_path)
    assert_merged(pipeline, base, weights, {})


def test_stray_weights_beside_a_foreign_concept_are_refused(tmp_path, base, pipeline):
    hf_output(tmp_path, base.unet, trained(base.unet), {"<new1>": torch.randn(32)}, safe=False)
    torch.save({"state": {}}, tmp_path / "optimizer.bin")
    with pytest.raises(ValueError, match="optimizer.bin: state is not one token's row"):
        load_concept(pipeline, tmp_path)
    torch.save({"<new1>": torch.randn(32)}, tmp_path / "optimizer.bin")
    with pytest.raises(UserError, match="holds <new1> twice"):
        load_concept(pipeline, tmp_path)


# Adobe, trained with diffusers


def test_adobe_delta(tmp_path, base, pipeline):
    weights, rows = trained(base.unet), {"<new1>": torch.randn(32), "<new2>": torch.randn(32)}
    torch.save({"unet": weights, "modifier_token": rows}, tmp_path / "delta.bin")
    torch.save({"unet": {}, "modifier_token": {}}, tmp_path / "delta-250.bin")  # an earlier checkpoint
    load_concept(pipeline, tmp_path)
    assert_merged(pipeline, base, weights, rows)


def test_adobe_delta_without_tokens(tmp_path, base, pipeline):
    weights = {name: value.requires_grad_() for name, value in trained(base.unet).items()}
    torch.save({"unet": weights}, tmp_path / "anything.bin")
    load_concept(pipeline, tmp_path / "anything.bin")
    assert_merged(pipeline, base, weights, {})


def test_adobe_compressed_delta(tmp_path, base, pipeline):
    """A compressed layer is a low-rank pair that is added to the base; rank 0 leaves its layer as it is."""
    base_state, pairs, expected = base.unet.state_dict(), {}, {}
    for i, name in enumerate(trained(base.unet)):
        rows, columns = base_state[name].shape
        pairs[name] = {"u": torch.randn(rows, i % 3), "v": torch.randn(i % 3, columns)}
        expected[name] = base_state[name] + pairs[name]["u"] @ pairs[name]["v"]
    torch.save({"unet": pairs, "modifier_token": {}}, tmp_path / "compressed_delta.bin")
    load_concept(pipeline, tmp_path / "compressed_delta.bin")
    assert_merged(pipeline, base, expected, {})


@pytest.mark.parametrize(
    "extra, message",
    [
        ({"text_encoder": {"weight": torch.ones(1)}}, r"unexpected entries \['text_encoder'\]"),
        (
            {"modifier_token": {"<new1>": [torch.ones(32), torch.ones(48)]}},
            "<new1> is not one token's row",
        ),  # SDXL
    ],
)
def test_adobe_delta_that_does_not_fit(tmp_path, base, pipeline, extra, message):
    torch.save({"unet": trained(base.unet)} | extra, tmp_path / "delta.bin")
    with pytest.raises(ValueError, match=message):
        load_concept(pipeline, tmp_path)


# Adobe, trained with CompVis' Stable Diffusion

SD_BLOCKS = {  # CompVis block -> diffusers block, all 16 of Stable Diffusion 1 and 2
    **{f"input_blocks.{i}.1": f"down_blocks.{b}.attentions.{a}" for i, b, a in
       [(1, 0, 0), (2, 0, 1), (4, 1, 0), (5, 1, 1), (7, 2, 0), (8, 2, 1)]},
    "middle_block.1": "mid_block.attentions.0",
    **{f"output_blocks.{i}.1": f"up_blocks.{i // 3}.attentions.{i % 3}" for i in range(3, 12)},
}  # fmt: skip


def compvis_state(weights):
    state = {}
    for compvis, diffusers in SD_BLOCKS.items():
        for name, value in weights.items():
            if name.startswith(f"{diffusers}."):
                state[name.replace(diffusers, f"model.diffusion_model.{compvis}", 1)] = value
    assert len(state) == len(weights)
    return state


@pytest.fixture(scope="module")
def sd_shaped_unet():
    """Tiny, but with Stable Diffusion's four levels of two layers, which CompVis names presuppose."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=32,
    ).eval()


@pytest.mark.parametrize("flat", [False, True], ids=["(K, D)", "(K·D,)"])
def test_adobe_compvis_checkpoint(tmp_path, base, pipeline, sd_shaped_unet, flat):
    weights, embed = trained(sd_shaped_unet), torch.randn(2, 32)
    assert len(weights) == 32
    state = compvis_state(weights) | {"embed": embed.flatten() if flat else embed}
    torch.save({"state_dict": state}, tmp_path / "delta_epoch=000004.ckpt")
    pipeline.unet = copy.deepcopy(sd_shaped_unet)
    load_concept(pipeline, tmp_path / "delta_epoch=000004.ckpt")
    expected = types.SimpleNamespace(
        unet=sd_shaped_unet, text_encoder=base.text_encoder, tokenizer=base.tokenizer
    )
    assert_merged(pipeline, expected, weights, {"<new1>": embed[0], "<new2>": embed[1]})


def test_compvis_names_of_sd15(sd15_unet):
    """The 16 block names against the real architecture, without its weights."""
    blocks = {name.split(".transformer_blocks")[0] for name in sd15_unet.attn_processors}
    assert blocks == set(SD_BLOCKS.values())


def test_compvis_checkpoint_with_anything_else_is_refused(tmp_path):
    state = {"model.diffusion_model.input_blocks.1.0.in_layers.0.weight": torch.ones(2)}
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="unexpected entry model.diffusion_model.input_blocks.1.0.in_layers"):
        read_concept(tmp_path / "model.ckpt")


# textual inversion


@pytest.mark.parametrize("shape", [(32,), (1, 32)])
@pytest.mark.parametrize("suffix", ["safetensors", "bin", "pt"])
def test_textual_inversion_file(tmp_path, base, pipeline, suffix, shape):
    row, file = torch.randn(32), tmp_path / f"learned_embeds.{suffix}"
    content = {"<cat-toy>": row.reshape(shape)}
    if suffix == "safetensors":
        save_file(content, file)
    else:
        torch.save(content, file)
    load_concept(pipeline, file)
    assert_merged(pipeline, base, {}, {"<cat-toy>": row})


@pytest.mark.parametrize("kind", ["diffusers", "kohya", "a1111"])
def test_several_vectors_of_a_token_mean_what_they_mean_to_diffusers(tmp_path, base, kind):
    """The states of "a <cat-toy> on a beach" are those of a pipeline that loaded the file by itself."""
    rows, file = torch.randn(3, 32), tmp_path / "cat-toy.pt"
    content = {
        "diffusers": {"<cat-toy>": rows},
        "kohya": {"emb_params": rows},
        "a1111": {"string_to_token": {"*": 265}, "string_to_param": {"*": rows}, "name": "cat-toy"},
    }[kind]
    torch.save(content, file)
    stock, pipeline = copy.deepcopy(base), copy.deepcopy(base)
    if kind == "kohya":  # whose files diffusers does not read
        stock.load_textual_inversion({"<cat-toy>": rows}, token="<cat-toy>")
    else:
        stock.load_textual_inversion(file, token="<cat-toy>")
    token_id = load_concept(pipeline, file).token_ids["<cat-toy>"]
    table = pipeline.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[token_id : token_id + 3], rows)
    states = [
        each.encode_prompt(["a <cat-toy> on a beach"], "cpu", 1, False)[0] for each in (stock, pipeline)
    ]
    assert torch.equal(*states)
    ids = tokenize(pipeline.tokenizer, ["a <cat-toy> on a beach"])
    assert torch.equal(pipeline.text_encoder(ids).last_hidden_state, states[0])

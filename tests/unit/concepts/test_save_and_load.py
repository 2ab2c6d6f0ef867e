"""save_concept and load_concept: what is written, what is merged bit for bit, and what is refused."""

import copy
import json
import sys
import types

import pytest
import torch
from diffusers import MotionAdapter, UNetMotionModel
from safetensors.torch import load_file, save_file

from tests.tiny_models import tiny_pipeline
from utils.common import tensor_files
from utils.common.errors import UserError
from utils.concepts.formats import read_concept
from utils.concepts.load import load_concept
from utils.concepts.save import save_concept

KV_FILE = "pytorch_custom_diffusion_weights"
MODES = pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def pipeline(base):
    """The same base model for every test, untouched by the others."""
    return fresh(base)


def fresh(base):
    parts = {name: getattr(base, name) for name in ("unet", "text_encoder", "tokenizer")}
    return types.SimpleNamespace(**copy.deepcopy(parts))


def trained_kv(unet, seed=1):
    """A stand-in for training: every attn2.to_k/to_v moved by noise."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: parameter.detach() + 0.1 * torch.randn(parameter.shape, generator=generator)
        for name, parameter in unet.named_parameters()
        if ".attentions." in name and name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
    }


def trained_rows(*tokens, width=32):
    generator = torch.Generator().manual_seed(2)
    return {token: torch.randn(width, generator=generator) for token in tokens}


def merged_by_hand(pipeline, kv, rows):
    state = pipeline.unet.state_dict()
    state.update({name: value.to(state[name].dtype) for name, value in kv.items()})
    table = pipeline.text_encoder.get_input_embeddings().weight.detach()
    return state, torch.cat([table, *(row[None].to(table.dtype) for row in rows.values())])


def assert_same_bits(pipeline, state, table):
    assert all(torch.equal(value, state[name]) for name, value in pipeline.unet.state_dict().items())
    assert torch.equal(pipeline.text_encoder.get_input_embeddings().weight, table)


def assert_untouched(pipeline, base):
    assert_same_bits(pipeline, base.unet.state_dict(), base.text_encoder.get_input_embeddings().weight)
    assert len(pipeline.tokenizer) == len(base.tokenizer)


# what is written


@MODES
def test_official_keys_and_manifest(tmp_path, pipeline, safe):
    kv, rows = trained_kv(pipeline.unet), trained_rows("<new1>")
    save_concept(tmp_path, kv, rows, safe, base="data/toon/sd", classes=["dog"])
    suffix = "safetensors" if safe else "bin"
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        [f"new1.{suffix}", "concept.json", f"{KV_FILE}.{suffix}"]
    )
    read = load_file if safe else torch.load
    tensors = read(tmp_path / f"{KV_FILE}.{suffix}")
    attn2 = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    assert torch.equal(tensors[f"{attn2}.processor.to_k_custom_diffusion.weight"], kv[f"{attn2}.to_k.weight"])
    assert torch.equal(read(tmp_path / f"new1.{suffix}")["<new1>"], rows["<new1>"])
    assert json.loads((tmp_path / "concept.json").read_text()) == {
        "format": 3,
        "base": "data/toon/sd",
        "modifier_tokens": ["<new1>"],
        "token_files": ["new1"],
        "classes": ["dog"],
        "files": {"cross_attention_kv": KV_FILE},
    }


@pytest.mark.parametrize("number", [1, 2])
def test_concepts_of_earlier_formats_are_read(tmp_path, pipeline, number):
    """Their token files are called by the token: <new1>.safetensors."""
    kv, rows = trained_kv(pipeline.unet), trained_rows("<new1>")
    save_concept(tmp_path, kv, rows, base="data/toon/sd", classes=["dog"])
    (tmp_path / "new1.safetensors").rename(tmp_path / "<new1>.safetensors")
    manifest = {"format": number, "base": "data/toon/sd", "modifier_tokens": ["<new1>"], "classes": ["dog"]}
    manifest |= {"kv": True} if number == 1 else {"files": {"cross_attention_kv": KV_FILE}}
    (tmp_path / "concept.json").write_text(json.dumps(manifest))
    concept = read_concept(tmp_path)
    assert concept.weights.keys() == kv.keys() and torch.equal(concept.rows["<new1>"], rows["<new1>"])
    assert (concept.base, concept.classes, concept.method) == ("data/toon/sd", ("dog",), None)
    (tmp_path / "concept.json").write_text(json.dumps(manifest | {"format": 4}))
    with pytest.raises(UserError, match="format 4; this version reads formats 1, 2 and 3"):
        read_concept(tmp_path)


def test_saving_over_an_earlier_version_removes_the_file_called_by_the_token(tmp_path):
    (tmp_path / "<new1>.safetensors").write_bytes(b"of an earlier version")
    save_concept(tmp_path, {}, trained_rows("<new1>"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["concept.json", "new1.safetensors"]
    assert list(read_concept(tmp_path).rows) == ["<new1>"]


def test_tokens_whose_letters_are_the_same_have_files_of_their_own(tmp_path):
    rows = trained_rows("<dog>", "*dog*", "<unet>", "<con>", "<犬>")
    save_concept(tmp_path, {}, rows)
    names = ["concept.json", "dog.safetensors", "dog_2.safetensors", "token_con.safetensors"]
    names += ["token_unet.safetensors", "犬.safetensors"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    read = read_concept(tmp_path).rows
    assert list(read) == list(rows) and all(torch.equal(read[token], rows[token]) for token in rows)


def test_bin_has_an_empty_entry_for_every_self_attention(tmp_path, pipeline):
    save_concept(tmp_path, trained_kv(pipeline.unet), trained_rows("<new1>"), safe_serialization=False)
    content = torch.load(tmp_path / f"{KV_FILE}.bin", weights_only=True)
    empty = {key for key, value in content.items() if value == {}}
    assert empty == {name for name in pipeline.unet.attn_processors if name.endswith("attn1.processor")}


@MODES
def test_token_file_is_small_though_the_row_is_a_view(tmp_path, safe):
    table = torch.randn(4096, 768)
    save_concept(tmp_path, {}, {"<new1>": table[-1]}, safe)
    (file,) = tmp_path.glob("new1.*")
    assert file.stat().st_size < 10_000


def test_a_crash_while_saving_leaves_the_old_concept(tmp_path, pipeline, monkeypatch):
    kv, rows = trained_kv(pipeline.unet), trained_rows("<new1>")
    save_concept(tmp_path, kv, rows)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def crash_midway(tensors, path, metadata):
        path.write_bytes(b"half a file")
        if KV_FILE in path.name:
            raise OSError("disk full")

    monkeypatch.setattr(tensor_files, "save_file", crash_midway)
    with pytest.raises(UserError, match=r"cannot write .*: disk full"):
        save_concept(tmp_path, trained_kv(pipeline.unet, seed=5), rows)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_saving_again_in_the_other_format_leaves_one_truth(tmp_path, pipeline):
    kv, rows = trained_kv(pipeline.unet), trained_rows("<new1>")
    save_concept(tmp_path, kv, rows, safe_serialization=True)
    save_concept(tmp_path, kv, rows, safe_serialization=False)
    assert not list(tmp_path.glob("*.safetensors"))
    save_concept(tmp_path, {}, rows)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["concept.json", "new1.safetensors"]


def test_save_refuses_names_that_are_not_kv(tmp_path, pipeline):
    wrapped = {f"module.{name}": value for name, value in trained_kv(pipeline.unet).items()}
    with pytest.raises(ValueError, match="module.down_blocks"):
        save_concept(tmp_path, wrapped, {})


# what is merged


@MODES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_round_trip_equals_merging_by_hand(tmp_path, pipeline, safe, dtype):
    pipeline.unet.to(dtype)
    pipeline.text_encoder.to(dtype)
    kv, rows = trained_kv(pipeline.unet), trained_rows("<new1>", "<new2>")
    by_hand = merged_by_hand(pipeline, kv, rows)
    vocabulary = len(pipeline.tokenizer)
    save_concept(tmp_path, kv, rows, safe, base="sd", classes=["dog", None])
    loaded = load_concept(pipeline, tmp_path)
    assert_same_bits(pipeline, *by_hand)
    assert loaded.token_ids == {"<new1>": vocabulary, "<new2>": vocabulary + 1}
    assert loaded.merged == tuple(sorted(kv))
    assert (loaded.base, loaded.classes) == ("sd", ("dog", None))


def test_prompts_find_the_row_and_the_unet_output_changes(tmp_path, base, pipeline):
    kv, rows = trained_kv(pipeline.unet), trained_rows("<new1>")
    save_concept(tmp_path, kv, rows)
    load_concept(pipeline, tmp_path)
    input_ids = pipeline.tokenizer("a photo of a <new1> dog").input_ids
    assert input_ids.count(pipeline.tokenizer.convert_tokens_to_ids("<new1>")) == 1
    looked_up = pipeline.text_encoder.get_input_embeddings()(torch.tensor(input_ids))
    assert any(torch.equal(vector, rows["<new1>"]) for vector in looked_up)
    latents, text = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 32)
    with torch.no_grad():
        assert not torch.allclose(pipeline.unet(latents, 7, text).sample, base.unet(latents, 7, text).sample)


def test_weight_is_the_way_from_base_to_trained(tmp_path, base, pipeline):
    kv = trained_kv(pipeline.unet)
    save_concept(tmp_path, kv, {})
    load_concept(pipeline, tmp_path, weight=0.25)
    start, end = base.unet.state_dict(), pipeline.unet.state_dict()
    for name, value in kv.items():
        torch.testing.assert_close(end[name], 0.75 * start[name] + 0.25 * value)


@pytest.mark.parametrize("peft", [None, types.ModuleType("peft")], ids=["without peft", "with peft"])
def test_load_attn_procs_is_never_called(tmp_path, pipeline, monkeypatch, peft):
    def forbidden(*args, **kwargs):
        raise AssertionError("load_attn_procs was called")

    monkeypatch.setitem(sys.modules, "peft", peft)
    monkeypatch.setattr("diffusers.loaders.unet.UNet2DConditionLoadersMixin.load_attn_procs", forbidden)
    kv, rows = trained_kv(pipeline.unet), trained_rows("<new1>")
    by_hand = merged_by_hand(pipeline, kv, rows)
    save_concept(tmp_path, kv, rows)
    load_concept(pipeline, tmp_path)
    assert_same_bits(pipeline, *by_hand)


def test_another_text_width_as_in_sd2(tmp_path):
    pipeline = tiny_pipeline(tmp_path / "tokenizer", width=48)
    kv, rows = trained_kv(pipeline.unet), trained_rows("<new1>", width=48)
    by_hand = merged_by_hand(pipeline, kv, rows)
    save_concept(tmp_path / "concept", kv, rows)
    load_concept(pipeline, tmp_path / "concept")
    assert_same_bits(pipeline, *by_hand)


def test_motion_unet(tmp_path, pipeline):
    kv, rows = trained_kv(pipeline.unet), trained_rows("<new1>")
    save_concept(tmp_path, kv, rows)
    adapter = MotionAdapter(
        block_out_channels=(32, 64),
        motion_layers_per_block=1,
        motion_mid_block_layers_per_block=1,
        motion_num_attention_heads=4,
        motion_norm_num_groups=8,
    )
    pipeline.unet = UNetMotionModel.from_unet2d(pipeline.unet, adapter)
    assert any(
        "motion_modules" in name and "attn2.to_k" in name for name, _ in pipeline.unet.named_parameters()
    )
    by_hand = merged_by_hand(pipeline, kv, rows)
    load_concept(pipeline, tmp_path)
    assert_same_bits(pipeline, *by_hand)


def test_textual_inversion_has_no_kv(tmp_path, base, pipeline):
    rows = trained_rows("<new1>")
    save_concept(tmp_path, {}, rows)
    loaded = load_concept(pipeline, tmp_path)
    assert loaded.merged == ()
    assert_same_bits(pipeline, *merged_by_hand(base, {}, rows))


def test_a_token_in_capitals_is_found_in_prompts(tmp_path, pipeline):
    save_concept(tmp_path, {}, trained_rows("<New1>"))
    token_id = load_concept(pipeline, tmp_path).token_ids["<New1>"]
    assert token_id in pipeline.tokenizer("a photo of a <New1> dog").input_ids


def test_padded_embedding_table_is_not_shrunk(tmp_path, pipeline):
    pipeline.text_encoder.resize_token_embeddings(len(pipeline.tokenizer) + 8, mean_resizing=False)
    rows = trained_rows("<new1>")
    save_concept(tmp_path, {}, rows)
    (token_id,) = load_concept(pipeline, tmp_path).token_ids.values()
    table = pipeline.text_encoder.get_input_embeddings().weight
    assert len(table) == token_id + 8 and torch.equal(table[token_id], rows["<new1>"])


# what is refused: the pipeline stays as it was


def edited(tmp_path, pipeline, edit):
    """A saved concept whose K/V file was changed by `edit`."""
    save_concept(tmp_path, trained_kv(pipeline.unet), trained_rows("<new1>"))
    file = tmp_path / f"{KV_FILE}.safetensors"
    tensors = load_file(file)
    edit(tensors, next(iter(sorted(tensors))))
    save_file(tensors, file)
    return tmp_path


BROKEN = {
    "missing": (lambda t, key: t.pop(key), "1 weights missing"),
    "unused": (
        lambda t, key: t.update({key.replace("blocks.0", "blocks.9"): t[key].clone()}),
        "0 weights missing .*1 not in the UNet",
    ),
    "unexpected": (lambda t, key: t.update({"lora.weight": torch.ones(1)}), "unexpected entry lora.weight"),
    "shape": (lambda t, key: t.update({key: torch.ones(2, 2)}), r"shape \(2, 2\)"),
    "width": (lambda t, key: t.update({key: t[key][:, :-1].contiguous()}), "has shape"),
    "nan": (lambda t, key: t.update({key: torch.full_like(t[key], float("nan"))}), "not finite"),
}


@pytest.mark.parametrize("edit, message", BROKEN.values(), ids=BROKEN.keys())
def test_broken_kv_is_refused(tmp_path, base, pipeline, edit, message):
    with pytest.raises(ValueError, match=message):
        load_concept(pipeline, edited(tmp_path, pipeline, edit))
    assert_untouched(pipeline, base)


def test_no_effect_is_refused(tmp_path, base, pipeline):
    kv = {name: base.unet.state_dict()[name] for name in trained_kv(base.unet)}
    save_concept(tmp_path, kv, trained_rows("<new1>"))
    with pytest.raises(ValueError, match="no effect"):
        load_concept(pipeline, tmp_path)
    save_concept(tmp_path, {name: value + 1e-7 for name, value in kv.items()}, {})
    pipeline.unet.half()
    base_half = copy.deepcopy(pipeline.unet.state_dict())
    with pytest.raises(ValueError, match="no effect"):  # there, but below the precision it is loaded in
        load_concept(pipeline, tmp_path, weight=0.01)
    assert all(torch.equal(value, base_half[name]) for name, value in pipeline.unet.state_dict().items())


@pytest.mark.parametrize("row", [torch.zeros(16), torch.full((32,), float("inf"))], ids=["width", "inf"])
def test_broken_row_is_refused(tmp_path, base, pipeline, row):
    save_concept(tmp_path, trained_kv(pipeline.unet), {"<new1>": row})
    with pytest.raises(ValueError, match="<new1> has width 16, the text encoder's is 32|not finite"):
        load_concept(pipeline, tmp_path)
    assert_untouched(pipeline, base)


def test_processors_that_hide_the_merged_weights_are_refused(tmp_path, base, pipeline):
    save_concept(tmp_path, trained_kv(pipeline.unet), {}, safe_serialization=False)
    pipeline.unet.load_attn_procs(tmp_path, weight_name=f"{KV_FILE}.bin", _pipeline=base)
    with pytest.raises(UserError, match="set_default_attn_processor"):
        load_concept(pipeline, tmp_path)


def test_fused_projections_are_refused(tmp_path, pipeline):
    save_concept(tmp_path, trained_kv(pipeline.unet), {})
    pipeline.unet.fuse_qkv_projections()
    with pytest.raises(UserError, match="unfuse_qkv_projections"):
        load_concept(pipeline, tmp_path)


def test_a_second_concept_with_kv_is_refused_and_one_without_is_not(tmp_path, base, pipeline):
    kv, rows = trained_kv(base.unet), trained_rows("<new1>")
    save_concept(tmp_path / "first", kv, rows)
    save_concept(tmp_path / "second", trained_kv(base.unet, seed=9), trained_rows("<new2>"))
    save_concept(tmp_path / "inversion", {}, trained_rows("<new3>"))
    load_concept(pipeline, tmp_path / "first")
    with pytest.raises(UserError, match=r"already carries the K/V of .*first"):
        load_concept(pipeline, tmp_path / "second")
    assert_same_bits(pipeline, *merged_by_hand(base, kv, rows))
    assert list(load_concept(pipeline, tmp_path / "inversion").token_ids) == ["<new3>"]


@pytest.mark.parametrize("known", ["<new1>", "<New1>"])
def test_a_token_that_exists_is_refused(tmp_path, base, pipeline, known):
    save_concept(tmp_path, trained_kv(pipeline.unet), trained_rows("<new1>"))
    pipeline.tokenizer = copy.deepcopy(base.tokenizer)
    pipeline.tokenizer.add_tokens([known])
    pipeline.text_encoder.resize_token_embeddings(len(pipeline.tokenizer), mean_resizing=False)
    with pytest.raises(UserError, match="<new1> of .* is in the tokenizer already"):
        load_concept(pipeline, tmp_path)
    assert all(torch.equal(v, base.unet.state_dict()[k]) for k, v in pipeline.unet.state_dict().items())


def test_missing_and_ambiguous_files(tmp_path, pipeline):
    with pytest.raises(UserError, match="does not exist"):
        load_concept(pipeline, tmp_path / "nowhere")
    with pytest.raises(UserError, match="no pytorch_custom_diffusion_weights"):
        load_concept(pipeline, tmp_path)
    save_concept(tmp_path, trained_kv(pipeline.unet), trained_rows("<new1>"))
    (tmp_path / f"{KV_FILE}.bin").write_bytes(b"")
    with pytest.raises(UserError, match="give the path of one of them"):
        load_concept(pipeline, tmp_path)
    (tmp_path / f"{KV_FILE}.bin").unlink()
    (tmp_path / "new1.safetensors").unlink()
    with pytest.raises(UserError, match="needs one file new1"):
        load_concept(pipeline, tmp_path)
    (tmp_path / f"{KV_FILE}.safetensors").unlink()
    with pytest.raises(UserError, match="no pytorch_custom_diffusion_weights"):  # concept.json promises K/V
        load_concept(pipeline, tmp_path)


@pytest.mark.parametrize("name", ["delta.bin", "new1.safetensors"])
def test_unreadable_file_is_named(tmp_path, pipeline, name):
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=f"cannot read .*{name}"):
        load_concept(pipeline, tmp_path / name)


def test_pickled_code_is_not_run(tmp_path, pipeline):
    class Payload:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    torch.save({"<new1>": Payload()}, tmp_path / "new1.bin")
    with pytest.raises(ValueError, match="could run code"):
        load_concept(pipeline, tmp_path / "new1.bin")
    assert not (tmp_path / "ran").exists()

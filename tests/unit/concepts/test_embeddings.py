"""Embeddings of other tools are read as a concept; other files of theirs are refused by what they are.

Layouts: kohya's train_textual_inversion.py ({"emb_params"}), A1111's modules/textual_inversion
({"string_to_param": {"*"}, "name", …}), diffusers' textual_inversion.py ({token: row}).
"""

import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.tiny_models import tiny_pipeline
from utils.common.errors import UserError
from utils.concepts.formats import read_concept
from utils.concepts.load import load_concept

ROW = torch.linspace(-1, 1, 32)


def a1111(row):
    """What A1111 saves: the row under "*" beside its name, step and checkpoint."""
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": torch.nn.Parameter(row)},
        "name": "Rex",
        "step": 499,
        "sd_checkpoint": "81761151",
        "sd_checkpoint_name": "v1-5-pruned-emaonly",
    }


FILES = {
    "kohya": ("rex.safetensors", lambda file: save_file({"emb_params": ROW[None]}, file), "<rex>"),
    "a1111": ("rex.pt", lambda file: torch.save(a1111(ROW[None]), file), "<rex>"),
    "a1111, bin": ("rex.bin", lambda file: torch.save(a1111(ROW[None]), file), "<rex>"),
    "diffusers": ("learned_embeds.safetensors", lambda file: save_file({"<toy>": ROW[None]}, file), "<toy>"),
    "a word": ("rex.safetensors", lambda file: save_file({"sks1": ROW}, file), "sks1"),
}


@pytest.mark.parametrize("name, write, token", FILES.values(), ids=FILES.keys())
def test_an_embedding_of_another_tool_is_read(tmp_path, name, write, token):
    write(tmp_path / name)
    assert list(read_concept(tmp_path / name).rows) == [token]
    renamed = read_concept(tmp_path / name, token="<mine>").rows
    assert list(renamed) == ["<mine>"] and torch.equal(renamed["<mine>"], ROW)


def test_a_folder_of_diffusers_textual_inversion_is_read(tmp_path):
    save_file({"<toy>": ROW[None]}, tmp_path / "learned_embeds.safetensors")
    assert torch.equal(read_concept(tmp_path).rows["<toy>"], ROW)


def test_load_concept_puts_the_row_under_the_given_token(tmp_path):
    base = tiny_pipeline(tmp_path / "tokenizer")
    pipeline = types.SimpleNamespace(**{n: getattr(base, n) for n in ("unet", "text_encoder", "tokenizer")})
    save_file({"emb_params": ROW[None]}, tmp_path / "rex.safetensors")
    token_id = load_concept(pipeline, tmp_path / "rex.safetensors", token="<Rex>").token_ids["<Rex>"]
    assert torch.equal(pipeline.text_encoder.get_input_embeddings().weight[token_id], ROW)
    assert token_id in pipeline.tokenizer("a photo of a <Rex> dog").input_ids


def test_a_file_name_with_blanks_needs_a_token(tmp_path):
    file = tmp_path / "my dog.safetensors"
    save_file({"emb_params": ROW[None]}, file)
    with pytest.raises(UserError, match=r"token '<my dog>' is more than one word: name it with --token"):
        read_concept(file)
    assert list(read_concept(file, token="<dog>").rows) == ["<dog>"]


def test_token_names_one_token(tmp_path):
    save_file({"<a>": ROW, "<b>": -ROW}, tmp_path / "two.safetensors")
    with pytest.raises(UserError, match="--token <c> names one token; those of .* are: <a>, <b>"):
        read_concept(tmp_path / "two.safetensors", token="<c>")


WIDE = torch.ones(1, 32)
REFUSED = {
    "half of sdxl": (
        {"clip_l": WIDE},
        "has clip_l; an embedding for SDXL has clip_l and clip_g: give one of both",
    ),
    "xti": ({"IN01": WIDE, "MID": WIDE, "OUT11": WIDE}, "a row per layer"),
    "kohya": ({"lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight": WIDE}, "LoRA of layers other"),
    "text lora": (
        {"lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": WIDE},
        "a LoRA of the text encoder, in kohya's layout",
    ),
    "peft": (
        {"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": WIDE},
        "a LoRA in the layout of PEFT or diffusers",
    ),
    "old diffusers": (
        {"mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight": WIDE},
        "a LoRA in the layout of PEFT or diffusers",
    ),
    "loha": (
        {"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.hada_w1_a": WIDE},
        "a LyCORIS network",
    ),
    "lokr": ({"lycoris_mid_block_attentions_0_proj_in.lokr_w1": WIDE}, "a LyCORIS network"),
    "bundle": ({"bundle_emb.dog.string_to_param.*": WIDE}, "embeddings bundled"),
    "checkpoint": ({"first_stage_model.decoder.conv_in.weight": WIDE}, "a whole Stable Diffusion checkpoint"),
    "vae": ({"decoder.conv_in.weight": WIDE, "quant_conv.bias": WIDE}, "a VAE"),
    "unet": ({"conv_in.weight": WIDE, "time_embedding.linear_1.bias": WIDE}, "a whole UNet"),
    "text encoder": ({"text_model.embeddings.position_embedding.weight": WIDE}, "a text encoder"),
    "controlnet": ({"control_model.input_blocks.0.0.weight": WIDE}, "a ControlNet"),
}


@pytest.mark.parametrize("content, message", REFUSED.values(), ids=REFUSED.keys())
def test_another_file_is_refused_by_what_it_is(tmp_path, content, message):
    save_file({key: value.clone() for key, value in content.items()}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=message) as mistake:
        read_concept(tmp_path / "x.safetensors")
    assert "\n" not in str(mistake.value)


def test_a_checkpoint_with_state_dict_is_refused(tmp_path):
    torch.save({"state_dict": {"first_stage_model.decoder.conv_in.weight": WIDE}}, tmp_path / "v1-5.ckpt")
    with pytest.raises(UserError, match="whole Stable Diffusion checkpoint"):
        read_concept(tmp_path / "v1-5.ckpt")


def test_an_image_is_refused(tmp_path):
    (tmp_path / "rex.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match="is an image; give the embedding's .pt"):
        read_concept(tmp_path / "rex.png")


@pytest.mark.parametrize("payload", [Path("rex"), torch.nn.ParameterDict({"*": ROW[None]})])
def test_a_pickle_of_other_objects_names_them_without_unsafe_advice(tmp_path, payload):
    torch.save({"string_to_param": payload}, tmp_path / "rex.pt")
    with pytest.raises(UserError, match=r"cannot read .*\.pt: it holds Python objects") as mistake:
        read_concept(tmp_path / "rex.pt")
    message = str(mistake.value)
    assert (
        ("pathlib" in message or "ParameterDict" in message)
        and "\n" not in message
        and "weights_only" not in message
    )


def test_a_damaged_file_is_one_line(tmp_path):
    torch.save(a1111(ROW[None]), tmp_path / "rex.pt")
    (tmp_path / "rex.pt").write_bytes((tmp_path / "rex.pt").read_bytes()[:200])
    with pytest.raises(UserError, match=r"cannot read .*\.pt: ") as mistake:
        read_concept(tmp_path / "rex.pt")
    assert "\n" not in str(mistake.value) and "weights_only" not in str(mistake.value)

"""What a run keeps in memory, calculated from shapes alone, at SDXL's real size."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.clip_vocabulary import write_clip_tokenizer
from tests.lora_names import a1111_module
from utils.bases.registry import base_row
from utils.concepts.lora import layer_name, parameter_name
from utils.config.train_config import parse_config
from utils.training.plan import attach_all, describe_memory
from utils.training.preflight import outline_of

TEXT = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "eos_token_id": 2,
    "bos_token_id": 0,
    "pad_token_id": 1,
}


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    """The configuration files of stable-diffusion-xl-base-1.0, without weights."""
    folder = tmp_path_factory.mktemp("sdxl")
    first = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    }
    second = {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
    }
    CLIPTextConfig(**TEXT, **first, projection_dim=768).save_pretrained(folder / "text_encoder")
    config = CLIPTextConfig(**TEXT, **second, projection_dim=1280, hidden_act="gelu")
    config.save_pretrained(folder / "text_encoder_2")
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            attention_head_dim=(5, 10, 20),
            transformer_layers_per_block=(1, 2, 10),
            cross_attention_dim=2048,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            scaling_factor=0.13025,
        )
    unet.save_config(folder / "unet")
    vae.save_config(folder / "vae")
    DDIMScheduler().save_pretrained(folder / "scheduler")
    for name in ("tokenizer", "tokenizer_2"):
        write_clip_tokenizer(folder / name)
    parts = {"unet": unet, "vae": vae, "scheduler": DDIMScheduler()}
    index = {name: ["diffusers", type(part).__name__] for name, part in parts.items()}
    for name, kind in (("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection)):
        index[name] = ["transformers", kind.__name__]
    index |= {name: ["transformers", "CLIPTokenizer"] for name in ("tokenizer", "tokenizer_2")}
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionXLPipeline"}))
    return folder


def settings(sdxl, tmp_path, *flags):
    given = [f"--pretrained_model_name_or_path={sdxl}", f"--instance_data_dir={tmp_path}", "--cls_token=dog"]
    return parse_config([*given, f"--output_dir={tmp_path / 'out'}", *flags])


@pytest.mark.parametrize(
    ("precision", "line"),
    [
        # fp32: UNet 2,567,463,684, text encoders 123,060,480 + 694,659,840, autoencoder 83,653,863, one row
        ("no", "weights 13.88 GB, gradients 1.36, optimizer 2.73: 17.96 GB"),
        # K/V, rows and text encoders stay in fp32
        ("bf16", "weights 9.25 GB, gradients 1.36, optimizer 2.73: 13.34 GB"),
        # ... and so does the autoencoder, which overflows in fp16
        ("fp16", "weights 9.42 GB, gradients 1.36, optimizer 2.73: 13.51 GB"),
    ],
)
def test_classdiffusion_on_sdxl(sdxl, tmp_path, precision, line):
    config = settings(sdxl, tmp_path, f"--mixed_precision={precision}")
    base = outline_of(config)
    attached = attach_all(base, config)
    kv = attached["cross_attention_kv"]
    assert len(kv) == 140 and sum(value.numel() for value in kv.values()) == 340_787_200
    assert sum(value.numel() for value in base.unet.parameters()) == 2_567_463_684
    assert [tuple(rows.shape) for rows in attached["token_rows"].values()] == [(1, 768), (1, 1280)]
    assert line in describe_memory(config, base, attached)


def test_the_names_in_a_lora_are_those_of_comfyui_and_a1111(sdxl, tmp_path):
    """ComfyUI, sd-scripts and diffusers: the UNet's own with underscores. A1111: of the CompVis module."""
    config = settings(sdxl, tmp_path, "--method=kv_only")
    names = attach_all(outline_of(config), config)["cross_attention_kv"]
    layers = {layer_name(name) for name in names}
    assert layers == {"lora_unet_" + name.removesuffix(".weight").replace(".", "_") for name in names}
    assert all(parameter_name(layer_name(name)) == name for name in names)
    depths = dict.fromkeys(
        ["input_blocks_4", "input_blocks_5", *(f"output_blocks_{i}" for i in (3, 4, 5))], 2
    )
    deep = ["input_blocks_7", "input_blocks_8", "middle_block", *(f"output_blocks_{i}" for i in range(3))]
    depths |= dict.fromkeys(deep, 10)
    assert {a1111_module(layer) for layer in layers} == {
        f"diffusion_model_{block}_1_transformer_blocks_{number}_attn2_to_{matrix}"
        for block, depth in depths.items()
        for number in range(depth)
        for matrix in "kv"
    }


def test_a_folder_of_the_family_has_its_row_and_preset(sdxl, tmp_path):
    assert base_row(sdxl).preset == "sdxl"
    config = settings(sdxl, tmp_path)
    assert config.learning_rate == 1e-5 and config.scale_lr and config.gradient_accumulation_steps == 2

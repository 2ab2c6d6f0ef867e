"""Base models of a known shape with random weights, and random photographs: what the benchmark trains on.

Speed and memory do not depend on what weights say, so nothing has to be downloaded.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.bases.registry import BASES, base_row

if TYPE_CHECKING:  # imported inside the functions, so that flags are answered before torch loads
    from transformers import CLIPTokenizer

CLASSES = ("dog", "cat", "bear", "barn")  # of up to four concepts
STARTS = ("ktn", "pll", "ucd", "sks")  # their rows begin at these words
WORDS = ("a", "photo", "of", *STARTS, *CLASSES)
# The values of stable-diffusion-v1-5's configuration files; the rest are the classes' defaults.
SD15 = {
    "text": {"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
    | {"num_attention_heads": 12, "projection_dim": 768, "max_position_embeddings": 77},
    "unet": {"sample_size": 64, "cross_attention_dim": 768},
    "vae": {"sample_size": 512, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
}
# The same of stable-diffusion-2-1 and stable-diffusion-xl-base-1.0: shapes for estimates.
SD21 = {
    "text": SD15["text"]
    | {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16},
    "unet": {"sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20)}
    | {"use_linear_projection": True},
    "vae": SD15["vae"] | {"sample_size": 768},
}
SDXL = {
    "text": SD15["text"],
    "text_2": SD15["text"]
    | {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
    | {"projection_dim": 1280},
    "unet": {"sample_size": 128, "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20)}
    | {"block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10)}
    | {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")}
    | {"up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")}
    | {"use_linear_projection": True, "addition_embed_type": "text_time"}
    | {"addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816},
    "vae": SD15["vae"] | {"sample_size": 1024},
}
TINY = {
    "text": {"vocab_size": 256, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    | {"num_attention_heads": 4, "projection_dim": 32, "max_position_embeddings": 24},
    "unet": {"sample_size": 8, "cross_attention_dim": 32, "block_out_channels": (32, 64)}
    | {"layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 4}
    | {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}
    | {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")},
    "vae": {"sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8},
}
SHAPES = ("sd15", "toon", "tiny")


def random_base(name: str, folder: Path) -> Path:
    """A stock pipeline folder of the shape `name` with seeded random weights, made once."""
    import torch
    from diffusers import StableDiffusionPipeline

    from utils.bases.devices import without_progress_bars

    if (folder / "model_index.json").is_file():  # written last
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(0)
    parts = parts_of(name, folder)
    pipeline = StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    with without_progress_bars():
        pipeline.save_pretrained(folder)
    return folder


def parts_of(name: str, folder: Path) -> dict[str, Any]:
    """The parts of a pipeline of the shape `name`, by their names. folder: where a tokenizer is written."""
    shapes = {"sd15": SD15, "sd21": SD21, "sdxl": SDXL, "tiny": TINY}
    return _like(base_row(name).path) if name == "toon" else _parts(shapes[name], folder)


def default_resolution(name: str) -> int:
    """The side of the images that a base was made for, in pixels."""
    return {"sd15": 512, "tiny": 16, "toon": 64}[name]


def _parts(shape: dict[str, Any], folder: Path) -> dict[str, Any]:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    size, length = shape["text"]["vocab_size"], shape["text"]["max_position_embeddings"]
    tokenizer = _write_tokenizer(folder / "words", size, length)
    blocks = len(shape["vae"]["block_out_channels"])
    types = {
        "down_block_types": ("DownEncoderBlock2D",) * blocks,
        "up_block_types": ("UpDecoderBlock2D",) * blocks,
    }
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}  # as in SD 1.5's text config
    second = {}
    if "text_2" in shape:
        config = CLIPTextConfig(**shape["text_2"], **ids)
        second = {"text_encoder_2": CLIPTextModelWithProjection(config)}
        second["tokenizer_2"] = _write_tokenizer(folder / "words_2", size, length)
    return second | {
        "text_encoder": CLIPTextModel(CLIPTextConfig(**shape["text"], **ids)),
        "unet": UNet2DConditionModel(**shape["unet"]),
        "vae": AutoencoderKL(**shape["vae"], **types),
        "tokenizer": tokenizer,
        "scheduler": DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            steps_offset=1,
        ),
    }


def _like(base: str) -> dict[str, Any]:
    """The parts of a base that is a folder here, with new weights."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    of = {"pretrained_model_name_or_path": base}
    text = CLIPTextConfig.from_pretrained(base, subfolder="text_encoder")
    return {
        "text_encoder": CLIPTextModel(text),
        "unet": UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(**of, subfolder="unet")),
        "vae": AutoencoderKL.from_config(AutoencoderKL.load_config(**of, subfolder="vae")),
        "tokenizer": CLIPTokenizer.from_pretrained(base, subfolder="tokenizer"),
        "scheduler": DDIMScheduler.from_pretrained(base, subfolder="scheduler"),
    }


def _write_tokenizer(folder: Path, size: int, length: int) -> "CLIPTokenizer":
    """A tokenizer of `size` entries that keeps WORDS whole; the other entries stand for nothing."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True)
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    vocabulary, merges = letters + [f"{letter}</w>" for letter in letters], []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            merges += [] if " ".join(pieces[:2]) in merges else [" ".join(pieces[:2])]
            pieces[:2] = [pieces[0] + pieces[1]]
            vocabulary += [] if pieces[0] in vocabulary else [pieces[0]]
    vocabulary += [f"<|{number}|>" for number in range(size - len(vocabulary) - 2)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    assert len(vocabulary) == size
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    end = dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>")
    return CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        bos_token="<|startoftext|>",
        model_max_length=length,
        **end,
    )


def random_concepts(folder: Path, side: int, concepts: int, images: int = 5) -> Path:
    """Writes `images` photographs of smooth noise for each concept, and the JSON list of the concepts."""
    import numpy as np
    from PIL import Image

    entries = []
    for k in range(concepts):
        rng, place = np.random.default_rng(k), folder / str(k)
        place.mkdir(parents=True, exist_ok=True)
        for i in range(images):
            noise = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
            noise.resize((side * 2, side * 3 // 2), Image.Resampling.BICUBIC).save(place / f"{i}.png")
        prompt = f"a photo of a <new{k + 1}> {CLASSES[k]}"
        entries.append({"instance_prompt": prompt, "instance_data_dir": str(place)})
    path = folder / "concepts.json"
    path.write_text(json.dumps(entries))
    return path


def training_arguments(base: Path, concepts: Path, count: int) -> list[str]:
    """The flags of train_classdiffusion.py that name base and concepts; the others have their defaults."""
    return [
        f"--pretrained_model_name_or_path={base}",
        "--preset=none",
        f"--concepts_list={concepts}",
        f"--modifier_token={'+'.join(f'<new{k + 1}>' for k in range(count))}",
        f"--cls_token={'+'.join(CLASSES[:count])}",
        f"--initializer_token={'+'.join(STARTS[:count])}",
    ]


assert set(SHAPES) - {"tiny"} <= BASES.keys()

"""Pipelines as one file in the original layout: the inverse of the converters that diffusers has."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

TEXTS = {  # (family, text encoder) -> prefix
    ("sd1", "text_encoder"): "cond_stage_model.transformer.",
    ("sd2", "text_encoder"): "cond_stage_model.model.",
    ("sdxl", "text_encoder"): "conditioner.embedders.0.transformer.",
    ("sdxl", "text_encoder_2"): "conditioner.embedders.1.model.",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.attentions.0": "middle_block.1",
}


def original_tensors(pipeline: Any, family: str) -> dict[str, Tensor]:
    """All weights by their original names. pipeline: has unet, vae and the text encoders of the family."""
    tensors = {f"model.diffusion_model.{k}": v for k, v in unet_tensors(pipeline.unet).items()}
    tensors |= {f"first_stage_model.{k}": v for k, v in vae_tensors(pipeline.vae).items()}
    for (one, encoder), prefix in TEXTS.items():
        if one == family:
            model = getattr(pipeline, encoder)
            write = clip_tensors if prefix.endswith("transformer.") else open_clip_tensors
            tensors |= {prefix + k: v for k, v in write(model, family).items()}
    return tensors


def write_original(
    pipeline: Any, family: str, path: Path, dtype: torch.dtype | None = None, **metadata: str
) -> Path:
    """The pipeline as one file, its configuration in the folder of the same name beside it."""
    tensors = original_tensors(pipeline, family)
    if dtype:
        tensors = {name: value.to(dtype) for name, value in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.clone().contiguous() for name, value in tensors.items()}, path, metadata or None)
    folder = path.with_suffix("")
    pipeline.save_pretrained(folder)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    return path


def unet_tensors(unet: Any) -> dict[str, Tensor]:
    depth = unet.config.layers_per_block + 1
    found = {}
    for name, value in unet.state_dict().items():
        for end, place in ENDS.items():
            if name.startswith(f"{end}."):
                found[place + name.removeprefix(end)] = value
        part, *rest = name.split(".")
        if part == "mid_block" and rest[0] == "resnets":
            found[f"middle_block.{2 * int(rest[1])}.{_resnet(rest[2:])}"] = value
        elif part in ("down_blocks", "up_blocks"):
            i, kind, j = int(rest[0]), rest[1], int(rest[2])
            down = part == "down_blocks"
            side, at = ("input_blocks", depth * i + j + 1) if down else ("output_blocks", depth * i + j)
            if kind == "resnets":
                found[f"{side}.{at}.0.{_resnet(rest[3:])}"] = value
            elif kind == "attentions":
                found[f"{side}.{at}.1.{'.'.join(rest[3:])}"] = value
            elif kind == "downsamplers":
                found[f"input_blocks.{depth * (i + 1)}.0.op.{rest[-1]}"] = value
            else:
                attends = hasattr(unet.up_blocks[i], "attentions")
                found[f"output_blocks.{depth * (i + 1) - 1}.{1 + attends}.conv.{rest[-1]}"] = value
    assert len(found) == len(unet.state_dict())
    return found


def _resnet(rest: list[str]) -> str:
    return f"{RESNET[rest[0]]}.{rest[1]}"


def vae_tensors(vae: Any) -> dict[str, Tensor]:
    last = len(vae.config.block_out_channels) - 1
    found = {}
    for name, value in vae.state_dict().items():
        for i in range(last + 1):
            name = name.replace(f"decoder.up_blocks.{i}.", f"decoder.up.{last - i}.")
            name = name.replace(f"encoder.down_blocks.{i}.", f"encoder.down.{i}.")
        changes = {".resnets.": ".block.", "samplers.0.conv": "sample.conv", "mid_block.": "mid."}
        changes |= {
            "conv_norm_out": "norm_out",
            "conv_shortcut": "nin_shortcut",
            "mid.block.1": "mid.block_2",
        }
        changes |= {"mid.block.0": "mid.block_1", "attentions.0": "attn_1", "group_norm": "norm"}
        changes |= {"to_out.0": "proj_out", "to_q": "q", "to_k": "k", "to_v": "v"}
        for new, old in changes.items():
            name = name.replace(new, old)
        convolution = ".attn_1." in name and value.ndim == 2
        found[name] = value[:, :, None, None] if convolution else value
    return found


def clip_tensors(model: Any, family: str) -> dict[str, Tensor]:
    tensors = {f"text_model.{name.removeprefix('text_model.')}": v for name, v in model.state_dict().items()}
    length = model.config.max_position_embeddings
    return tensors | {"text_model.embeddings.position_ids": torch.arange(length)[None]}


def open_clip_tensors(model: Any, family: str) -> dict[str, Tensor]:
    """A Stable Diffusion 2 has a layer more than its folder, which it does not read."""
    weights = {name.removeprefix("text_model."): v for name, v in model.state_dict().items()}
    width = model.config.hidden_size
    found = {
        "positional_embedding": weights["embeddings.position_embedding.weight"],
        "token_embedding.weight": weights["embeddings.token_embedding.weight"],
        "ln_final.weight": weights["final_layer_norm.weight"],
        "ln_final.bias": weights["final_layer_norm.bias"],
        "text_projection": weights.get("text_projection.weight", torch.zeros(width, width)).T,
        "logit_scale": torch.tensor(4.6),
    }
    layers = model.config.num_hidden_layers
    for number in range(layers + (family == "sd2")):
        old, new = f"encoder.layers.{min(number, layers - 1)}.", f"transformer.resblocks.{number}."
        names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
        for kind in ("weight", "bias"):
            joined = [weights[f"{old}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            found[f"{new}attn.in_proj_{kind}"] = torch.cat(joined)
            for part, name in (names | {"self_attn.out_proj": "attn.out_proj"}).items():
                found[f"{new}{name}.{kind}"] = weights[f"{old}{part}.{kind}"]
    return found


def write_hollow(path: Path, shapes: dict[str, list[int]], metadata: dict | None = None) -> Path:
    """A safetensors file of zeros in half precision, of which only the header takes room on the disk."""
    header: dict[str, Any] = {"__metadata__": metadata or {}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + end)
    return path


def header_of(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where the data begin."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(size)), 8 + size

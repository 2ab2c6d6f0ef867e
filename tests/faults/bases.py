"""Base models with one thing wrong: files missing, cut, zeroed, pickled, of other shapes, of other types."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"

POINTER = "version https://git-lfs.github.com/spec/v1\n"  # what git-lfs leaves in a file's place


class Payload:
    """Unpickled, it makes a file: proof that a stranger's code ran."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def remove(name: str) -> Callable[[Path], None]:
    return lambda base: (base / name).unlink()


def cut(name: str) -> Callable[[Path], None]:
    return lambda base: (base / name).write_bytes(
        (base / name).read_bytes()[: (base / name).stat().st_size // 2]
    )


def put(name: str, content: bytes | str) -> Callable[[Path], None]:
    def act(base: Path) -> None:
        (base / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return act


def zeroed(name: str) -> Callable[[Path], None]:
    return lambda base: (base / name).write_bytes(bytes((base / name).stat().st_size))


def change(name: str, **values: Any) -> Callable[[Path], None]:
    def act(base: Path) -> None:
        config = json.loads((base / name).read_text()) | values
        (base / name).write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))

    return act


def tensors(name: str, act: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(base: Path) -> None:
        content = load_file(base / name)
        act(content)
        save_file(content, base / name, metadata={"format": "pt"})

    return apply


def with_nan(content: dict[str, torch.Tensor]) -> None:
    first = sorted(content)[0]
    content[first] = content[first].clone().fill_(float("nan"))


def without_one(content: dict[str, torch.Tensor]) -> None:
    del content[sorted(content)[-1]]


def reshaped(content: dict[str, torch.Tensor]) -> None:
    first = sorted(content)[0]
    content[first] = torch.zeros(7, 5)


def one_more(content: dict[str, torch.Tensor]) -> None:
    content["a.stranger"] = torch.zeros(3)


def pickled(name: str) -> Callable[[Path], None]:
    """A pickle under the name that libraries read where there is no safetensors file."""

    def act(base: Path) -> None:
        old = {"model.safetensors": "pytorch_model.bin"}.get(Path(name).name, "diffusion_pytorch_model.bin")
        (base / name).unlink()
        (base / name).with_name(old).write_bytes(pickle.dumps(Payload(base / "PWNED")))

    return act


DAMAGE: dict[str, Callable[[Path], None]] = {
    "no model_index": remove("model_index.json"),
    "empty model_index": put("model_index.json", ""),
    "model_index a list": put("model_index.json", "[1, 2]"),
    "model_index null": put("model_index.json", "null"),
    "model_index a number": put("model_index.json", "1e999"),
    "model_index in UTF-16": put("model_index.json", '{"_class_name": 1}'.encode("utf-16")),
    "model_index deep": put("model_index.json", "[" * 100_000),
    "model_index without class": change("model_index.json", _class_name=...),
    "model_index class a list": change("model_index.json", _class_name=["StableDiffusionPipeline"]),
    "model_index of another family": change("model_index.json", _class_name="FluxPipeline"),
    "model_index without unet": change("model_index.json", unet=...),
    "model_index unet nonsense": change("model_index.json", unet=["os", "system"]),
    "model_index unet of the wrong class": change("model_index.json", unet=["diffusers", "AutoencoderKL"]),
    "model_index unet null": change("model_index.json", unet=None),
    "model_index tokenizer a word": change("model_index.json", tokenizer="CLIPTokenizer"),
    **{
        f"{part} configuration {wrong}": put(f"{part}/{name}", content)
        for part, name in (
            ("unet", "config.json"),
            ("vae", "config.json"),
            ("text_encoder", "config.json"),
            ("scheduler", "scheduler_config.json"),
            ("tokenizer", "tokenizer_config.json"),
        )
        for wrong, content in (("empty", ""), ("a list", "[]"), ("null", "null"), ("binary", b"\xff\x00\xfe"))
    },
    "no unet configuration": remove("unet/config.json"),
    "no vae configuration": remove("vae/config.json"),
    "no text_encoder configuration": remove("text_encoder/config.json"),
    "no scheduler configuration": remove("scheduler/scheduler_config.json"),
    "unet channels a word": change("unet/config.json", block_out_channels="many"),
    "unet channels empty": change("unet/config.json", block_out_channels=[]),
    "unet channels negative": change("unet/config.json", block_out_channels=[-32, 64]),
    "unet channels odd": change("unet/config.json", block_out_channels=[31, 64]),
    "unet blocks unknown": change("unet/config.json", down_block_types=["NoBlock", "DownBlock2D"]),
    "unet sample_size null": change("unet/config.json", sample_size=None),
    "unet sample_size a word": change("unet/config.json", sample_size="large"),
    "unet of another width": change("unet/config.json", cross_attention_dim=48),
    "unet of four times the width": change("unet/config.json", block_out_channels=[64, 128]),
    "vae channels a number": change("vae/config.json", block_out_channels=3),
    "vae latent channels 5": change("vae/config.json", latent_channels=5),
    "vae scaling_factor null": change("vae/config.json", scaling_factor=None),
    "vae scaling_factor a word": change("vae/config.json", scaling_factor="big"),
    "text_encoder width a word": change("text_encoder/config.json", hidden_size="wide"),
    "text_encoder width 0": change("text_encoder/config.json", hidden_size=0),
    "text_encoder heads do not divide": change("text_encoder/config.json", num_attention_heads=5),
    "text_encoder vocabulary short": change("text_encoder/config.json", vocab_size=10),
    "text_encoder of another type": change("text_encoder/config.json", model_type="bert"),
    "scheduler timesteps a word": change("scheduler/scheduler_config.json", num_train_timesteps="many"),
    "scheduler timesteps 0": change("scheduler/scheduler_config.json", num_train_timesteps=0),
    "scheduler betas unknown": change("scheduler/scheduler_config.json", beta_schedule="wild"),
    "scheduler prediction unknown": change("scheduler/scheduler_config.json", prediction_type="wild"),
    "tokenizer length a word": change("tokenizer/tokenizer_config.json", model_max_length="long"),
    "tokenizer length 0": change("tokenizer/tokenizer_config.json", model_max_length=0),
    **{f"{name} missing": remove(name) for name in (UNET, VAE, TEXT)},
    **{f"{name} cut": cut(name) for name in (UNET, VAE, TEXT)},
    **{f"{name} zeroed": zeroed(name) for name in (UNET, VAE, TEXT)},
    **{f"{name} empty": put(name, b"") for name in (UNET, VAE, TEXT)},
    **{f"{name} text": put(name, POINTER) for name in (UNET, VAE, TEXT)},
    **{f"{name} NaN": tensors(name, with_nan) for name in (UNET, VAE, TEXT)},
    **{f"{name} a tensor less": tensors(name, without_one) for name in (UNET, VAE, TEXT)},
    **{f"{name} a tensor reshaped": tensors(name, reshaped) for name in (UNET, VAE, TEXT)},
    **{f"{name} a tensor more": tensors(name, one_more) for name in (UNET, VAE, TEXT)},
    **{f"{name} a live pickle": pickled(name) for name in (UNET, VAE, TEXT)},
}

"""Damaged BLIPs, CLIPs, DINOs and motion adapters, through the commands: one line, exit 2."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from PIL import Image

import blip2t
import videogen
from scripts import evaluate
from tests.faults.commands import call
from tests.faults.shim import survived, tried
from tests.tiny_blip import write_blip
from tests.tiny_motion import write_adapter
from tests.tiny_scorers import write_scorers
from utils.common.images import save_png
from utils.common.tensor_files import read_tensors, write_tensors


@pytest.mark.parametrize(
    "name, content",
    [
        ("config.json", b"[]"),
        ("config.json", b'{"architectures": 3}'),
        ("config.json", b'{"architectures": ["BlipForImageTextRetrieval"], "text_config": 5}'),
        ("model.safetensors", b""),
        ("model.safetensors", b"\0" * 1000),
        ("tokenizer.json", b"null"),
        ("tokenizer.json", b"\xff\xfe"),
        ("processor_config.json", b"[1"),
    ],
)
def test_broken_blips(name: str, content: bytes, tmp_path: Path, pictures: Callable[..., Path]):
    blip = write_blip(tmp_path / "blip", "BLIP-1")
    assert os.path.exists(blip / name)
    (blip / name).write_bytes(content)
    tried("broken BLIP")
    end = call(blip2t.main, [f"--model={blip}", f"--image={pictures('dog')}", "--prompt=a photo"])
    assert end.refused, end
    survived("broken BLIP")


BROKEN_JUDGES = [
    ("clip", "config.json", b"[]"),
    ("clip", "config.json", b'{"model_type": "clip", "text_config": 5}'),
    ("clip", "model.safetensors", b""),
    ("clip", "tokenizer.json", b"null"),
    ("clip", "tokenizer.json", b"\xff\xfe"),
    ("clip", "preprocessor_config.json", b"[1"),
    ("clip", "preprocessor_config.json", b"[1]"),
    ("dino", "config.json", b'{"model_type": "vit", "hidden_size": "wide"}'),
    ("dino", "model.safetensors", bytes(1000)),
    ("dino", "preprocessor_config.json", b"null"),
    ("dino", "preprocessor_config.json", b"\xff"),
]


@pytest.mark.parametrize(("kind", "name", "content"), BROKEN_JUDGES)
def test_broken_judges(kind: str, name: str, content: bytes, tmp_path: Path, pictures: Callable[..., Path]):
    judges, out = write_scorers(tmp_path / "judges"), tmp_path / "out"
    (tmp_path / "drawn").mkdir()
    save_png(Image.new("RGB", (16, 16)), tmp_path / "drawn" / "0.png", {"prompt": "a <new1> dog"})
    (tmp_path / "judges" / kind / name).write_bytes(content)
    tried(f"broken judge: {kind}")
    given = ["generated", str(tmp_path / "drawn"), f"--real={pictures('dog')}", "--cls_token=dog"]
    given += [f"--metrics={kind}_i", *(f"--{name}={folder}" for name, folder in judges.items())]
    AcceleratorState._reset_state(reset_partial_state=True)
    end = call(evaluate.main, [*given, f"--output_dir={out}"])
    assert end.refused, end
    assert not (out / "table.json").exists()
    survived(f"broken judge: {kind}")


@pytest.mark.parametrize("damage", ["cut", "zeroed", "empty", "NaN", "a tensor less"])
def test_broken_motion_adapters(damage: str, tmp_path: Path, tiny_base: Path):
    adapter, out = write_adapter(tmp_path / "adapter"), tmp_path / "out"
    weights = adapter / "diffusion_pytorch_model.safetensors"
    content, tensors = weights.read_bytes(), read_tensors(weights)
    first = sorted(tensors)[0]
    if damage == "NaN":
        write_tensors(weights, tensors | {first: tensors[first] * float("nan")})
    elif damage == "a tensor less":
        write_tensors(weights, {name: value for name, value in tensors.items() if name != first})
    else:
        cut = {"cut": content[: len(content) // 2], "zeroed": bytes(len(content)), "empty": b""}
        weights.write_bytes(cut[damage])
    tried("broken motion adapter")
    given = [
        f"--base={tiny_base}",
        f"--motion_adapter={adapter}",
        "--prompt=a dog",
        "--num_inference_steps=1",
    ]
    end = call(videogen.main, [*given, f"--output_dir={out}"])
    assert end.refused and not out.exists(), end
    survived("broken motion adapter")

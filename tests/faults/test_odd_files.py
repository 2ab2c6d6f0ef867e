"""Chosen odd files of strangers, through the commands: concepts, prompts files, BLIPs."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

import blip2t
import inference
import videogen
from scripts import evaluate
from tests.faults.bases import Payload
from tests.faults.commands import End, call
from tests.faults.shim import survived, tried
from tests.tiny_blip import write_blip
from tests.tiny_motion import write_adapter
from tests.tiny_scorers import write_scorers
from utils.images import save_png
from utils.tensor_files import read_tensors, write_tensors

KV = "pytorch_custom_diffusion_weights"


def sampled(concept: Path, base: Path, *more: str) -> End:
    out = concept.parent / "out"
    flags = [f"--base={base}", f"--concept={concept}", "--num_images=1", "--num_inference_steps=1"]
    return call(inference.main, [*flags, f"--output_dir={out}", *more])


def put(name: str, value: Any) -> Callable[[Path], None]:
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    return lambda folder: (folder / name).write_bytes(content) and None


def change(**values: Any) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        path = folder / "concept.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return act


def weights(act: Callable[[dict], dict], name: str = f"{KV}.safetensors") -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = act(read_tensors(folder / name))
        (folder / name).unlink()
        write_tensors(folder / name, content)

    return apply


def live(name: str, instead_of: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        (folder / instead_of).unlink()
        (folder / name).write_bytes(pickle.dumps(Payload(folder.parent / "PWNED")))

    return act


ODD: dict[str, Callable[[Path], None]] = {
    "manifest a list": put("concept.json", []),
    "manifest null": put("concept.json", None),
    "manifest binary": put("concept.json", bytes(range(256))),
    "manifest deep": put("concept.json", b"[" * 50_000),
    "manifest of format 3": change(format=3),
    "manifest of format true": change(format=True),
    "tokens a word": change(modifier_tokens="<new1>"),
    "tokens numbers": change(modifier_tokens=[1]),
    "token with a newline": change(modifier_tokens=["<new\n1>"]),
    "token that leaves": change(modifier_tokens=["../concept/<new1>"]),
    "classes null": change(classes=None),
    "classes of the wrong number": change(classes=["dog", "cat"]),
    "class with a newline": change(classes=["dog\nerror: all is well"]),
    "base a number": change(base=3),
    "files a list": change(files=[KV]),
    "files of a stranger": change(files={"cross_attention_kv": KV, "stranger": "<new1>"}),
    "subject that formats": change(subject="{token.__class__}"),
    "subject a list": change(subject=[]),
    "K/V empty": weights(lambda content: {}),
    "K/V NaN": weights(lambda content: {k: v.fill_(float("nan")) for k, v in content.items()}),
    "K/V infinite": weights(lambda content: {k: v.fill_(float("inf")) for k, v in content.items()}),
    "K/V integers": weights(lambda content: {k: v.int() for k, v in content.items()}),
    "K/V of other shapes": weights(lambda content: {k: torch.ones(3, 3) for k in content}),
    "K/V of other names": weights(lambda content: {f"x.{k}": v for k, v in content.items()}),
    "K/V a half": weights(lambda content: dict(sorted(content.items())[::2])),
    "row NaN": weights(
        lambda content: {k: v * float("nan") for k, v in content.items()}, "<new1>.safetensors"
    ),
    "row short": weights(lambda content: {k: v[:5] for k, v in content.items()}, "<new1>.safetensors"),
    "row of another token": weights(
        lambda content: dict.fromkeys(["<x>"], content["<new1>"]), "<new1>.safetensors"
    ),
    "row empty": weights(lambda content: {}, "<new1>.safetensors"),
    "K/V a live pickle": live(f"{KV}.bin", f"{KV}.safetensors"),
    "row a live pickle": live("<new1>.bin", "<new1>.safetensors"),
    "delta a live pickle": live("delta.bin", f"{KV}.safetensors"),
    "K/V a pointer": put(f"{KV}.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
    "K/V twice": lambda folder: shutil.copy(folder / f"{KV}.safetensors", folder / f"{KV}.bin") and None,
    "K/V a folder": lambda folder: (
        (folder / f"{KV}.safetensors").unlink(),
        (folder / f"{KV}.safetensors").mkdir(),
    ),
    "nothing": lambda folder: [path.unlink() for path in folder.iterdir()] and None,
}


def some(kinds: list[str]) -> list[Any]:
    """Every sixth for each run of the tests; the others run with --faults."""
    return [k if i % 6 == 0 else pytest.param(k, marks=pytest.mark.faults) for i, k in enumerate(kinds)]


@pytest.mark.parametrize("kind", some(list(ODD)))
def test_odd_concepts(kind: str, concept: Path, tiny_base: Path):
    ODD[kind](concept)
    tried("odd concept")
    end = sampled(concept, tiny_base)
    assert end.refused, end
    assert not (concept.parent / "out").exists() and not (concept.parent / "PWNED").exists()
    survived("odd concept")


def test_the_odd_ones_are_odd_for_what_was_done_to_them(concept: Path, tiny_base: Path):
    assert sampled(concept, tiny_base).code == 0


@pytest.mark.parametrize("size", [10_000_000, 1001])
def test_an_endless_prompt_neither_hangs_nor_is_repeated(size: int, concept: Path, tiny_base: Path):
    path = concept.parent / "prompts.txt"
    path.write_text("a dog " * (size // 6 + 1))
    tried("endless prompt")
    end = sampled(concept, tiny_base, f"--prompts_file={path}")
    assert end.refused and len(end.stderr) < 500, end
    survived("endless prompt")


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
    given = [f"--generated={tmp_path / 'drawn'}", f"--real={pictures('dog')}", "--cls_token=dog"]
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

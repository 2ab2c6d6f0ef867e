"""Chosen odd files of strangers, through the commands: concepts and prompts files."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

import inference
from tests.faults.bases import Payload
from tests.faults.commands import End, as_nobody, call
from tests.faults.shim import survived, tried
from utils.common.tensor_files import read_tensors, write_tensors

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
    "row NaN": weights(lambda content: {k: v * float("nan") for k, v in content.items()}, "new1.safetensors"),
    "row short": weights(lambda content: {k: v[:5] for k, v in content.items()}, "new1.safetensors"),
    "row of another token": weights(
        lambda content: dict.fromkeys(["<x>"], content["<new1>"]), "new1.safetensors"
    ),
    "row empty": weights(lambda content: {}, "new1.safetensors"),
    "K/V a live pickle": live(f"{KV}.bin", f"{KV}.safetensors"),
    "row a live pickle": live("new1.bin", "new1.safetensors"),
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


@pytest.mark.parametrize("what", ["K/V", "row", "manifest", "base"])
def test_what_cannot_be_read_is_not_called_damaged(what: str, concept: Path, tiny_base: Path):
    with TemporaryDirectory() as name:
        place = Path(name)
        shutil.copytree(concept, place / "concept")
        shutil.copytree(tiny_base, place / "sd")
        file = {
            "K/V": place / "concept" / f"{KV}.safetensors",
            "row": place / "concept" / "new1.safetensors",
            "manifest": place / "concept" / "concept.json",
            "base": place / "sd" / "unet" / "diffusion_pytorch_model.safetensors",
        }[what]
        for path in [place, *place.rglob("*")]:
            path.chmod(0o777 if path.is_dir() else 0o644)
        file.chmod(0)
        tried("unreadable file")
        with as_nobody():
            end = sampled(place / "concept", place / "sd")
        assert end.refused and "Permission denied; check the path and its permissions" in end.stderr, end
        assert "damaged" not in end.stderr and "again" not in end.stderr
        survived("unreadable file")

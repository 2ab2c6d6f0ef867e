"""Files from strangers, damaged or odd: concepts, prompts, adapters, BLIPs, results, configurations."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

import blip2t
import inference
from scripts import report
from tests.faults.bases import Payload
from tests.faults.commands import End, call
from tests.faults.shim import survived, tried
from tests.faults.test_flags import write_concept
from tests.faults.test_malformed import BYTES, damaged, each, examples, forged
from tests.results_folder import write_results
from tests.tiny_blip import write_blip
from tests.tiny_motion import write_adapter
from utils.concepts.formats import read_concept
from utils.evaluation.data_sets import Individual, read_templates
from utils.sampling.motion_adapters import check_adapter
from utils.sampling.prompts import read_prompts
from utils.tensor_files import read_tensors, write_tensors
from utils.training.concept import read_concepts_list
from utils.training.config import read_config

KV = "pytorch_custom_diffusion_weights"


@pytest.fixture
def concept(tmp_path: Path, tiny_base: Path, pictures: Callable[..., Path]) -> Path:
    write_concept(tmp_path / "concept", tiny_base, "<new1>", pictures("dog"))
    return tmp_path / "concept"


def is_sound(folder: Path) -> None:
    """Reads a concept: refused in one line, or every tensor of it is finite."""
    read = read_concept(folder)
    assert all(value.isfinite().all() for value in [*read.weights.values(), *read.rows.values()])


@examples
def test_manifests_of_concepts(concept: Path, examples: int):
    path = concept / "concept.json"
    good = path.read_bytes()

    def check(content: bytes) -> None:
        path.write_bytes(content)
        is_sound(concept)

    forgeries = forged(json.loads(good)).map(lambda value: json.dumps(value).encode())
    each("concept.json", examples, BYTES | damaged(good) | forgeries, check)


@examples
@pytest.mark.parametrize("name", [f"{KV}.safetensors", "<new1>.safetensors"])
def test_weights_of_concepts(concept: Path, name: str, examples: int):
    good = (concept / name).read_bytes()

    def check(content: bytes) -> None:
        (concept / name).write_bytes(content)
        is_sound(concept)

    each("weights of a concept", examples, BYTES | damaged(good), check)


VALUES = st.recursive(
    st.none()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from([torch.ones(3), torch.ones(2, 3), torch.tensor(float("nan")), torch.ones(3).int()]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
KEYS = ("unet", "modifier_token", "state_dict", "emb_params", "string_to_param", "clip_l", "<new1>", "embed")


@examples
@pytest.mark.parametrize("name", ["delta.bin", "learned_embeds.bin", "a.pt", "delta_epoch=1.ckpt"])
def test_pickles_of_wrong_types(tmp_path: Path, name: str, examples: int):
    def check(value: Any) -> None:
        torch.save(value, tmp_path / name)
        is_sound(tmp_path / name)

    each(
        "pickled concept",
        examples,
        VALUES | st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3),
        check,
    )


@examples
def test_prompts_files(tmp_path: Path, examples: int):
    path, dog = tmp_path / "prompts.txt", (Individual("<new1>", "dog", tmp_path, ""),)

    def check(content: bytes) -> None:
        path.write_bytes(content)
        read_prompts([], path)

    def check_templates(content: bytes) -> None:
        path.write_bytes(content)
        read_templates(path, dog)

    texts = st.text(max_size=60).flatmap(
        lambda text: st.sampled_from(["utf-8", "utf-16", "latin-1", "utf-8-sig"]).map(
            lambda code: text.encode(code, errors="replace")
        )
    )
    each("prompts file", examples, BYTES | texts, check)
    each("prompts file of an evaluation", examples, BYTES | texts, check_templates)


@examples
def test_configurations(tmp_path: Path, examples: int):
    path = tmp_path / "training_config.json"
    good = {"instance_data_dir": "dog", "cls_token": "dog", "seed": 0, "learning_rate": 1e-5, "hflip": True}

    def check(value: Any) -> None:
        path.write_text(json.dumps(value))
        read_config(path)

    each("training configuration", examples, forged(good), check)


@examples
def test_lists_of_concepts(tmp_path: Path, examples: int):
    path = tmp_path / "concepts.json"
    good = [{"instance_data_dir": "dog", "instance_prompt": "a <new1> dog", "class_prompt": "a dog"}]

    def check(content: bytes) -> None:
        path.write_bytes(content)
        read_concepts_list(path)

    forgeries = forged(good).map(lambda value: json.dumps(value).encode())
    each("concepts list", examples, BYTES | forgeries, check)


@examples
def test_motion_adapters(tmp_path: Path, tiny_base: Path, examples: int):
    path = write_adapter(tmp_path / "adapter") / "config.json"
    good = path.read_bytes()

    def check(content: bytes) -> None:
        path.write_bytes(content)
        assert check_adapter(path.parent, tiny_base) >= 1

    forgeries = forged(json.loads(good)).map(lambda value: json.dumps(value).encode())
    each("motion adapter", examples, BYTES | damaged(good) | forgeries, check)


@pytest.mark.faults
@pytest.mark.parametrize("name", ["settings.json", "subjects.json", "table.json"])
@pytest.mark.parametrize("examples", [400])
def test_results_folders(tmp_path: Path, name: str, examples: int):
    path = write_results(tmp_path / "results") / name
    good = path.read_bytes()

    def check(content: bytes) -> None:
        path.write_bytes(content)
        end = call(report.main, [str(path.parent)])
        assert end.refused or end.code == 0, end

    forgeries = forged(json.loads(good)).map(lambda value: json.dumps(value).encode())
    each("results folder", examples // 4, BYTES | forgeries, check)


# chosen ones, through the command


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

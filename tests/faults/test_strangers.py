"""Files from strangers, damaged or odd: concepts, prompts, adapters, BLIPs, results, configurations."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from scripts import report
from tests.faults.commands import call
from tests.faults.malformed import BYTES, damaged, each, examples, forged
from tests.results_folder import write_results
from tests.tiny_motion import write_adapter
from utils.concepts.formats import read_concept
from utils.config.concepts import read_concepts_list
from utils.config.train_config import read_config
from utils.evaluation.data_sets import Individual, read_templates
from utils.sampling.motion_adapters import check_adapter
from utils.sampling.prompts import read_prompts

KV = "pytorch_custom_diffusion_weights"


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
@pytest.mark.parametrize("name", [f"{KV}.safetensors", "new1.safetensors"])
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

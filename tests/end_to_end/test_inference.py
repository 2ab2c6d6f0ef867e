"""inference.py as a user runs it, on a tiny pipeline and a concept saved for it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import inference
from tests.tiny_models import tiny_pipeline
from utils.concepts.formats import ConceptWeights
from utils.concepts.save import save_concept
from utils.errors import UserError

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_pipeline(folder / "words").save_pretrained(folder / "sd")
    return folder / "sd"


@pytest.fixture(scope="module")
def concept(base, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("concept")
    pipeline = tiny_pipeline(folder / "words")
    torch.manual_seed(1)
    kv = {
        name: weight + torch.randn_like(weight)
        for name, weight in pipeline.unet.named_parameters()
        if re.search(r"attn2\.to_[kv]\.weight", name)
    }
    save_concept(folder / "dog", kv, {"<new1>": torch.randn(32)}, base=str(base), classes=["dog"])
    return folder / "dog"


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "inference.py", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


def sample_quickly(output_dir: Path, *arguments: object) -> None:
    inference.main(
        ["--num_inference_steps=3", "--device=cpu", f"--output_dir={output_dir}", *map(str, arguments)]
    )


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image, dtype=int)


def test_command_with_a_concept_draws_its_default_prompts(concept, base, tmp_path):
    out = tmp_path / "out"
    settings = ["--num_images=2", "--seed=5", "--num_inference_steps=3", "--device=cpu"]
    done = run("--concept", concept, "--output_dir", out, *settings)
    assert done.returncode == 0, done.stderr
    assert f"{base} on cpu, torch.float32" in done.stdout
    assert done.stdout.splitlines()[-1] == f"4 images in {out}, all of them in {out / 'grid.png'}"
    lines = done.stderr.strip().split("\r")  # the progress over images, and not a word besides
    assert "4/4" in lines[-1] and all("image" in line for line in lines), done.stderr
    stems = ["a-photo-of-a-new1-dog", "a-new1-dog-wearing-headphones-on-the-beach"]
    names = {f"{stem}_{seed}.png" for stem in stems for seed in (5, 6)}
    assert {path.name for path in out.iterdir()} == names | {"grid.png"}
    with Image.open(out / "a-photo-of-a-new1-dog_6.png") as image:
        assert image.size == (16, 16)
        assert image.text == {
            "prompt": "a photo of a <new1> dog",
            "seed": "6",
            "negative_prompt": "",
            "num_inference_steps": "3",
            "guidance_scale": "6.0",
            "eta": "1.0",
            "scheduler": "ddim",
            "base": str(base),
            "concept": str(concept),
            "dtype": "torch.float32",
        }
    with Image.open(out / "grid.png") as grid:
        assert grid.width == 2 * 256 + 8


def test_command_reports_a_mistake_in_one_line(tmp_path):
    done = run(f"--concept={tmp_path / 'none'}", f"--output_dir={tmp_path / 'out'}")
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_token_past_the_tokenizers_limit_is_told(concept, base, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "load_pipeline", None)
    prompt = "a photo of" + " the dog in front of the barn" * 4 + " of a <new1> dog"
    with pytest.raises(UserError, match="is cut at 24 tokens, before <new1>; shorten it"):
        sample_quickly(tmp_path / "out", "--concept", concept, "--prompt", prompt)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["concept.json", "<new1>.safetensors"])
def test_a_broken_concept_is_told(name, concept, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "load_pipeline", None)
    broken = tmp_path / "broken"
    shutil.copytree(concept, broken)
    (broken / name).write_bytes(b"{")
    with pytest.raises(UserError, match=re.escape(str(broken / name))) as mistake:
        sample_quickly(tmp_path / "out", "--concept", broken)
    assert "\n" not in str(mistake.value) and not (tmp_path / "out").exists()


def test_batch_size_changes_nothing_and_the_concept_something(concept, base, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\ufeffa dog\n\n  a cat\n", encoding="utf-8")
    given = ["--base", base, "--prompts_file", prompts, "--num_images=2"]
    sample_quickly(tmp_path / "one", *given, "--batch_size=1")
    sample_quickly(tmp_path / "three", *given, "--batch_size=3")
    sample_quickly(tmp_path / "concept", *given, "--concept", concept)
    for name in ("a-dog_0.png", "a-dog_1.png", "a-cat_0.png", "a-cat_1.png"):
        reference = pixels(tmp_path / "one" / name)
        assert np.abs(reference - pixels(tmp_path / "three" / name)).max() <= 1, name
        assert np.abs(reference - pixels(tmp_path / "concept" / name)).max() > 1, name


def test_default_prompts():
    assert inference.default_prompts([]) == ["a photo of a dog", "a dog wearing headphones on the beach"]
    pair = ConceptWeights(rows={"<new1>": None, "<new2>": None}, classes=("teddy bear", "barn"))
    assert inference.default_prompts([pair])[-1] == "a <new1> teddy bear in front of a <new2> barn"
    with pytest.raises(UserError, match="names no token"):
        inference.default_prompts([ConceptWeights()])


def test_second_run_overwrites_the_first(base, tmp_path):
    given = ["--base", base, "--prompt", "a dog", "--num_images=1"]
    sample_quickly(tmp_path, *given)
    before = pixels(tmp_path / "a-dog_0.png")
    sample_quickly(tmp_path, *given, "--scheduler=pndm")
    assert (pixels(tmp_path / "a-dog_0.png") != before).any()
    assert {path.name for path in tmp_path.iterdir()} == {"a-dog_0.png", "grid.png"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--prompts_file={tmp}/none.txt", "no prompts file"),
        ("--prompts_file={tmp}/empty.txt", "is empty"),
        ("--prompt=dog --num_images=0", "--num_images is 0"),
        ("--prompt=dog --batch_size=0", "--batch_size is 0"),
        ("--prompt=dog --seed=-1", "--seed is -1"),
        ("--prompt=dog --scheduler=heun", "unknown scheduler 'heun'; choose one of ddim"),
        ("--prompt=dog --scheduler=dpm++ --eta=1", "ignores eta"),
        ("--prompt=dog --guidance_scale=1 --negative_prompt=cat", "only above 1"),
        ("--prompt=dog --output_dir={tmp}/empty.txt", "is a file"),
        ("--prompt=dog --base={tmp}", "has no model_index.json"),
        ("--prompt=dog --base={base} --device=tpu9", "unknown device"),
        ("--prompt=dog --base={base} --dtype=int8", "unknown dtype"),
        ("--prompt=<new1> --base={base}", "<new1>, known are: none"),
        ("--prompt=<new2> --concept={concept}", "<new2>, known are: <new1>"),
        ("--concept={concept} --concept={concept}", "two concepts use <new1>"),
    ],
)
def test_mistakes_are_told_before_models_load(arguments, words, base, concept, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "load_pipeline", None)
    (tmp_path / "empty.txt").write_text("\n \n")
    argv = [part.format(tmp=tmp_path, base=base, concept=concept) for part in arguments.split()]
    with pytest.raises(UserError, match=re.escape(words)) as mistake:
        inference.main([f"--output_dir={tmp_path / 'out'}", *argv])
    assert "\n" not in str(mistake.value)
    assert [path.name for path in tmp_path.iterdir()] == ["empty.txt"]

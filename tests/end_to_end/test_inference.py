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
from utils.common.errors import UserError
from utils.concepts.save import save_concept
from utils.concepts.weights import ConceptWeights

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


def sample_quickly(output_dir: Path, *arguments: object) -> None:
    inference.main(
        ["--num_inference_steps=3", "--device=cpu", f"--output_dir={output_dir}", *map(str, arguments)]
    )


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image, dtype=int)


def test_command_with_a_concept_draws_its_default_prompts(concept, base, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "inference.py", f"--concept={concept}", f"--output_dir={out}"]
    command += ["--num_images=2", "--seed=5", "--num_inference_steps=3", "--device=cpu"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == (
        f"base {base} (not one of toon, sd15, sd21, sdxl: the settings of sd15) on cpu, torch.float32"
    )
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


def test_a_token_past_the_tokenizers_limit_is_reported(concept, base, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.sampling.drawing.load_pipeline", None)
    prompt = "a photo of" + " the dog in front of the barn" * 4 + " of a <new1> dog"
    with pytest.raises(UserError, match="is cut at 24 tokens, before <new1>; shorten it"):
        sample_quickly(tmp_path / "out", "--concept", concept, "--prompt", prompt)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["concept.json", "new1.safetensors"])
def test_a_broken_concept_is_reported(name, concept, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.sampling.drawing.load_pipeline", None)
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


def test_a_token_can_be_called_by_another_name(concept, base, tmp_path):
    row = concept / "new1.safetensors"
    given = ["--base", base, "--num_images=1"]
    sample_quickly(tmp_path / "own", *given, "--concept", row, "--prompt=a <new1>")
    sample_quickly(tmp_path / "other", *given, "--concept", row, "--token=<rex>", "--prompt=a <rex>")
    assert (pixels(tmp_path / "own" / "a-new1_0.png") == pixels(tmp_path / "other" / "a-rex_0.png")).all()


def test_embedding_adjustment_turns_the_token_and_is_recorded(concept, base, tmp_path):
    given = ["--concept", concept, "--num_images=1", "--prompt=a <new1> dog", "--prompt=a dog"]
    sample_quickly(tmp_path / "plain", *given)
    sample_quickly(tmp_path / "turned", *given, "--embedding_adjustment=1")
    difference = {
        name: np.abs(pixels(tmp_path / "plain" / name) - pixels(tmp_path / "turned" / name)).max()
        for name in ("a-new1-dog_0.png", "a-dog_0.png")
    }
    assert difference["a-new1-dog_0.png"] > 1 and difference["a-dog_0.png"] == 0
    with Image.open(tmp_path / "turned" / "a-new1-dog_0.png") as image:
        assert image.text["embedding_adjustment"] == "1.0" and "adjust" not in image.text


def test_default_prompts():
    assert inference.default_prompts([]) == ["a photo of a dog", "a dog wearing headphones on the beach"]
    pair = ConceptWeights(rows={"<new1>": None, "<new2>": None}, classes=("teddy bear", "barn"))
    assert inference.default_prompts([pair])[-1] == "a <new1> teddy bear in front of a <new2> barn"
    with pytest.raises(UserError, match="names no token"):
        inference.default_prompts([ConceptWeights()])


def test_a_prompt_without_the_token_is_named(base, concept, tmp_path, capsys):
    given = ["--concept", concept, "--base", base, "--num_images=1", "--prompt=a <new1> dog"]
    sample_quickly(tmp_path, *given)
    assert "lacks" not in capsys.readouterr().out
    sample_quickly(tmp_path, *given, "--prompt=a dog on the beach")
    said = "“a dog on the beach” lacks <new1>: it may show the class, not your subject"
    assert said in capsys.readouterr().out.splitlines()


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
        ("--concept={tmp}/none", "none does not exist"),
        ("--prompts_file={tmp}/none.txt", "no prompts file"),
        ("--prompts_file={tmp}/empty.txt", "is empty"),
        ("--prompt=dog --num_images=0", "--num_images 0: give a number of at least 1"),
        ("--prompts_file={tmp}/latin.txt", "latin.txt is not UTF-8 text (byte 2): save it as UTF-8"),
        ("--prompts_file={tmp}/long.txt", "has 10,000,000 characters; a prompt has at most 1,000"),
        ("--prompt=dog --num_inference_steps=1001 --base={base}", "has 1000 timesteps: give at most that"),
        ("--prompt=dog --num_inference_steps=-1", "--num_inference_steps -1: give a number of at least 1"),
        ("--prompt=dog --guidance_scale=nan", "--guidance_scale nan: give a finite number"),
        ("--prompt=dog --eta=inf", "--eta inf: give a finite number"),
        ("--prompt=dog --seed=9223372036854775808", "--seed 9223372036854775808: give"),
        ("--prompt=dog --eta=1.5", "eta is 1.5; it must be in [0, 1]"),
        ("--prompt=dog --steps=3", "did you mean --num_inference_steps?"),
        ("--prompt=dog --output_dir=", "--output_dir: '' is not a path"),
        ("--prompt=dog --batch_size=0", "--batch_size 0: give"),
        ("--prompt=dog --seed=-1", "--seed -1: give a number of at least 0, below 9223372036854775808"),
        ("--prompt=dog --scheduler=heun", "--scheduler heun is unknown: choose from ddim, pndm"),
        ("--prompt=dog --scheduler=dpm++ --eta=1", "ignores eta"),
        ("--prompt=dog --guidance_scale=1 --negative_prompt=cat", "only above 1"),
        ("--prompt=dog --output_dir={tmp}/empty.txt", "is a file"),
        ("--prompt=dog --base={tmp}", "has no model_index.json"),
        ("--prompt=dog --base={base} --device=tpu9", "unknown device"),
        ("--prompt=dog --base={base} --dtype=int8", "--dtype int8 is unknown: choose from fp32, fp16, bf16"),
        ("--prompt=<new1> --base={base}", "<new1>, known are: none"),
        ("--prompt=<new2> --concept={concept}", "<new2>, known are: <new1>"),
        ("--concept={concept} --concept={concept}", "two concepts use <new1>"),
        ("--concept={concept} --token=<a> --token=<b>", "--token is given 2 time(s) and --concept 1"),
        ("--token=<a> --base={base}", "--token is given 1 time(s) and --concept 0"),
        ("--concept={concept} --token=a~b", "token 'a b' is more than one word"),
        ("--embedding_adjustment=0.5", "no effect without --concept"),
        ("--concept={concept} --embedding_adjustment=1.5", "--embedding_adjustment 1.5: give a share"),
        ("--concept={concept} --embedding_adjustment=nan", "--embedding_adjustment nan: give a finite"),
        (
            "--concept={concept}/new1.safetensors --base={base} --embedding_adjustment=0.5",
            "a class for <new1>",
        ),
    ],
)
def test_mistakes_are_reported_before_models_load(arguments, words, base, concept, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.sampling.drawing.load_pipeline", None)
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes(b"dr\xf6g")
    (tmp_path / "long.txt").write_text("x" * 10_000_000)
    argv = [
        part.format(tmp=tmp_path, base=base, concept=concept).replace("~", " ") for part in arguments.split()
    ]
    with pytest.raises(UserError, match=re.escape(words)) as mistake:
        inference.main([f"--output_dir={tmp_path / 'out'}", *argv])
    assert "\n" not in str(mistake.value) and len(str(mistake.value)) < 300
    assert {path.name for path in tmp_path.iterdir()} == {"empty.txt", "latin.txt", "long.txt"}


def test_from_another_directory_the_embedded_base_is_there_and_paths_are_the_users(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a photo of a dog\n")
    flags = "--prompts_file=prompts.txt --num_images=1 --num_inference_steps=2 --device=cpu".split()
    for base in ("toon", "data/toon/sd", REPOSITORY / "data" / "toon" / "sd"):
        inference.main([f"--base={base}", *flags])
        assert capsys.readouterr().out.startswith("base toon (data/toon/sd) on cpu, torch.float32\n")
        with Image.open(tmp_path / "outputs" / "a-photo-of-a-dog_0.png") as image:
            assert image.size == (64, 64) and image.text["base"] == "toon"
        (tmp_path / "outputs" / "a-photo-of-a-dog_0.png").unlink()


def test_the_embedded_base_has_its_own_steps_and_guidance(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("utils.sampling.images.sample", lambda *_, **settings: drawn.append(settings) or [])
    with pytest.raises(ValueError):  # no images
        inference.main(["--prompt=a dog", "--device=cpu", f"--output_dir={tmp_path}"])
    assert drawn[0] == {
        "batch_size": 4,
        "negative_prompt": "",
        "num_inference_steps": 50,
        "guidance_scale": 3.0,
        "eta": 1.0,
        "scheduler": "ddim",
    }

"""blip2t.py as a user runs it, on a tiny model; and what the embedded model's scores are worth."""

import json
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import BertTokenizer, BlipForImageTextRetrieval

import blip2t
from scripts.toon.models.blip import one_thing_wrong
from scripts.toon.models.training import scenes
from scripts.toon.world.captions import describe, subject_words, with_article
from scripts.toon.world.render import render
from scripts.toon.world.world import ANIMALS, PLACES, Scene
from tests.tiny_blip import LIMIT, write_blip
from utils.blip2t import BLIP2T
from utils.common.errors import UserError
from utils.common.images import open_image

REPOSITORY = Path(__file__).parents[2]
TOON = REPOSITORY / "data" / "toon" / "blip"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blip(tmp_path_factory.mktemp("blip"), "BLIP-2")


def test_command_without_arguments_scores_the_example_and_says_which_model():
    command = [sys.executable, "blip2t.py", "--device=cpu"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    line = re.fullmatch(
        r"(-?\d\.\d{4})  data/toon/blip \(BLIP-1 ITC\)  data/dog/0\.png  a photo of a dog\n", done.stdout
    )
    assert line, done.stdout
    picture = open_image(REPOSITORY / "data" / "dog" / "0.png")
    others = BLIP2T(TOON, "cpu").text_similarity(
        ["a photo of a car", "a photo of a dog in the snow"], picture
    )
    assert float(line[1]) > others.max() + 0.1


def test_from_another_directory_the_example_and_the_embedded_judge_are_there(tmp_path, monkeypatch, capsys):
    blip2t.main(["--device=cpu", "--model=data/toon/blip"])
    here = capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    for model in ("toon", "data/toon/blip", TOON):
        blip2t.main(["--device=cpu", f"--model={model}"])
        score, name, path, prompt = capsys.readouterr().out.split("  ")
        assert [score, name, prompt] == [here.split("  ")[i] for i in (0, 1, 3)]
        assert (tmp_path / path).samefile(REPOSITORY / "data" / "dog" / "0.png")


def test_command_as_json_has_a_score_for_every_pair(model, pictures, capsys):
    folder = pictures("dog")
    flags = [f"--model={model}", "--head=itm", "--device=cpu", "--json", "--batch_size=2"]
    blip2t.main([*flags, f"--image={folder}", f"--image={folder / '0.png'}", "--prompt=a photo of a dog"])
    report = json.loads(capsys.readouterr().out)
    assert {key: report[key] for key in ("model", "family", "head")} == {
        "model": str(model),
        "family": "BLIP-2",
        "head": "itm",
    }
    files = [folder / name for name in ("0.png", "1.png", "2.png", "0.png")]
    expected = BLIP2T(model, "cpu", "itm").text_similarity("a photo of a dog", [open_image(f) for f in files])
    assert [pair["image"] for pair in report["scores"]] == [str(file) for file in files]
    assert {pair["prompt"] for pair in report["scores"]} == {"a photo of a dog"}
    scores = torch.tensor([pair["score"] for pair in report["scores"]])
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


def test_every_line_names_the_model_and_the_last_is_the_mean(model, pictures, capsys):
    image = pictures("dog") / "1.png"
    flags = [f"--model={model}", "--device=cpu", f"--image={image}", "--prompt=a dog", "--prompt=a cat"]
    blip2t.main(flags)
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert [line[1:] for line in lines] == [
        [f"{model} (BLIP-2 ITC)", str(image), "a dog"],
        [f"{model} (BLIP-2 ITC)", str(image), "a cat"],
        [f"{model} (BLIP-2 ITC)", "mean of 2 pairs"],
    ]
    first, second, mean = (float(line[0]) for line in lines)
    assert first != second and mean == pytest.approx((first + second) / 2, abs=1e-4)


def test_entries_that_are_no_images_are_skipped_and_said(model, pictures, tmp_path, capsys):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes((pictures("dog") / "0.png").read_bytes())
    (tmp_path / "notes.txt").write_text("a dog")
    flags = [f"--model={model}", "--device=cpu", f"--image={tmp_path}", "--prompt=a dog", "--prompt=a cat"]
    blip2t.main([*flags, "--json"])
    out, err = capsys.readouterr()
    pairs = [(Path(pair["image"]).name, pair["prompt"]) for pair in json.loads(out)["scores"]]
    assert pairs == [("a.png", "a dog"), ("b.png", "a cat")]
    assert f"skipped {tmp_path / 'notes.txt'}: not an image" in err


def test_mistakes_are_reported_before_the_model_loads(model, tmp_path, pictures, monkeypatch):
    monkeypatch.setattr("utils.blip2t.BLIP2T", None)
    image, prompt = f"--image={pictures('dog')}", "--prompt=a dog"
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"not an image")
    Image.new("RGB", (4, 4)).save(tmp_path / "cut.bmp")
    (tmp_path / "cut.bmp").write_bytes((tmp_path / "cut.bmp").read_bytes()[:60])
    for flags, words in (
        (
            ["--image=data/dog", prompt, "--prompt=a cat"],
            "2 prompts and 5 images do not pair up; give one prompt",
        ),
        ([image], "--image without --prompt"),
        ([prompt], "--prompt without --image"),
        ([image, "--prompt= "], "--prompt ' ' is empty"),
        ([image, "--prompt=" + "dog " * LIMIT], "shorten it"),
        ([f"--image={tmp_path / 'none.png'}", prompt], "no image at .*none.png"),
        ([f"--image={tmp_path / 'empty'}", prompt], "no images in .*empty"),
        ([f"--image={tmp_path / 'broken.png'}", prompt], "cannot read image .*broken.png"),
        ([f"--image={tmp_path / 'cut.bmp'}", prompt], "cannot read image .*cut.bmp"),
        ([image, prompt, "--head=both"], "--head both is unknown: choose from itc, itm"),
        ([image, prompt, "--batch_size=0"], "--batch_size 0: give a number of at least 1"),
        ([image, prompt, "--device=tpu"], "unknown device 'tpu'"),
        ([image, prompt, "--model=data/toon/clip"], "data/toon/clip is a CLIPModel"),
        ([image, prompt, f"--model={tmp_path / 'none'}"], "is not a folder, though"),
    ):
        with pytest.raises(UserError, match=words) as error:
            blip2t.main([f"--model={model}", *flags])
        assert "\n" not in str(error.value)


def canonical(scene: Scene) -> str:
    return with_article(f"a photo of a {describe(scene, subject_words(scene, colour=True))}")


def wrong_place(scene: Scene, rng: random.Random) -> Scene:
    return replace(scene, place=rng.choice([place for place in PLACES if place != scene.place]))


@pytest.fixture(scope="module")
def held_out() -> list[Scene]:
    drawn = scenes("blip-check", 160, held_out=True)
    return [scene for scene in drawn if scene.subject.kind in ANIMALS][:96]


@pytest.mark.parametrize("head", ["itc", "itm"])
def test_toon_blip_prefers_the_own_caption_of_held_out_renders_to_one_with_another_place(held_out, head):
    rng = random.Random(0)
    blip = BLIP2T(TOON, "cpu", head)
    images = [render(scene, 64) for scene in held_out]
    own = blip.scores([canonical(scene) for scene in held_out], images)
    other = blip.scores([canonical(wrong_place(scene, rng)) for scene in held_out], images)
    assert len(held_out) == 96
    assert (own > other).float().mean() >= 0.95  # chance is 50 %
    assert own.mean() > other.mean() + 0.3


def test_toon_blip_notices_one_wrong_thing_as_often_as_the_readme_says():
    blip = BlipForImageTextRetrieval.from_pretrained(TOON, dtype=torch.float32).eval()
    preferred, decided = one_thing_wrong(blip, BertTokenizer.from_pretrained(TOON), 64, count=256)
    assert preferred >= 0.78  # 83.7 % of 1,024
    assert decided >= 0.6  # 66.1 %


def test_toon_blip_is_small():
    assert sum(file.stat().st_size for file in TOON.iterdir()) <= 6 * 2**20

"""Which image belongs to which prompt, for images to draw and for images that are there."""

from pathlib import Path

import pytest
from PIL import Image

from utils.bases.registry import World
from utils.common.errors import UserError
from utils.common.images import save_png
from utils.evaluation.data_sets import Individual, Subject
from utils.evaluation.shots import UNRELATED, class_shots, shots_of, shots_of_folder, unrelated_shots
from utils.evaluation.training_process import named_by
from utils.sampling.grids import save_grid

REX = Subject("rex", (Individual("<new1>", "dog", Path("real"), ""),), ("a {} at sea", "a sad {}"))


def save(folder: Path, name: str, **about: object) -> None:
    folder.mkdir(exist_ok=True)
    save_png(Image.new("RGB", (8, 8)), folder / name, about)


def test_every_method_is_asked_the_same_and_the_base_for_the_class():
    personal, base = shots_of(REX, "classdiffusion", [3, 4]), shots_of(REX, "base", [3, 4])
    assert [shot.prompt for shot in personal] == ["a <new1> dog at sea"] * 2 + ["a sad <new1> dog"] * 2
    assert [shot.prompt for shot in base] == ["a dog at sea"] * 2 + ["a sad dog"] * 2
    assert [shot.seed for shot in personal] == [shot.seed for shot in base] == [3, 4, 3, 4]
    assert [shot.text for shot in personal] == [shot.text for shot in base]
    assert personal[3].image == "classdiffusion/rex/images/01_4.png"
    assert personal[3].describe()["class"] == "dog"


def test_prompts_of_a_token_for_the_noun_may_name_the_class():
    names = [named_by("textual_inversion", flags) for flags in ([], ["--name_class"])]
    prompts = [[shot.prompt for shot in shots_of(REX, "textual_inversion", [0], name)] for name in names]
    assert prompts == [["a <new1> at sea", "a sad <new1>"], ["a <new1> dog at sea", "a sad <new1> dog"]]
    assert named_by("textual_inversion", ["--name_class", "--no_name_class"]) == "{token}"


def test_class_images_are_asked_for_without_the_token():
    (group,) = class_shots(REX, "classdiffusion", [0, 1])
    assert [shot.prompt for shot in group] == ["a photo of a dog"] * 2
    assert [shot.image for shot in group] == [f"classdiffusion/rex/class/00_{seed}.png" for seed in (0, 1)]


def test_unrelated_prompts_name_no_class_of_the_subject_and_the_base_s_images_are_shared():
    world = World(("dog", "hot dog stand", "cat"), flat=0)
    tuned, base = unrelated_shots(REX, "kv_only", 7, world)
    assert [shot.prompt for shot in tuned] == [shot.prompt for shot in base] == ["a photo of a cat"]
    assert (tuned[0].image, base[0].image) == ("kv_only/rex/drift/02_7.png", "drift/02_7.png")
    assert unrelated_shots(REX, "base", 7, world) == (base, base)
    assert [shot.text for shot in unrelated_shots(REX, "kv_only", 7, None)[0]] == list(UNRELATED)
    boat = Subject("b", (Individual("<new1>", "Sailing boat", Path("real"), ""),), ("a {}",))
    assert len(unrelated_shots(boat, "kv_only", 7, None)[0]) == len(UNRELATED) - 1


def test_images_of_inference_know_their_prompts(tmp_path):
    for seed in (7, 8):
        save(tmp_path, f"x_{seed}.png", prompt="a <new1> dog at sea", seed=seed)
    save(tmp_path, "y.png", prompt="a sad <new1>", seed=7)
    save_grid([Image.new("RGB", (8, 8))], ["a sad <new1>"], tmp_path / "grid.png", {"prompt": "a sad <new1>"})
    found = shots_of_folder(tmp_path, None, "rex", "<new1>", "dog")
    said = [(shot.prompt_index, shot.text, shot.seed, path.name) for shot, path in found]
    assert said == [
        (0, "a dog at sea", 7, "x_7.png"),
        (0, "a dog at sea", 8, "x_8.png"),
        (1, "a sad dog", 7, "y.png"),
    ]
    assert found[2][0].image == "generated/rex/images/01_7.png"
    removed = shots_of_folder(tmp_path, None, "rex", "<new1>", None)
    assert removed[0][0].text == "a dog at sea" and removed[2][0].text == "a sad"


def test_other_images_are_numbered_by_the_lines_of_a_file(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a {} at sea\n\na sad <new1> dog\n")
    folder = tmp_path / "pictures"
    for name in ("01_b.png", "01_a.png", "0_1.png"):
        save(folder, name)
    save(folder, "z.png", prompt="a sad <new1> dog")  # says it itself
    found = shots_of_folder(folder, prompts, "rex", "<new1>", "dog")
    said = [(path.name, shot.prompt_index, shot.prompt, shot.seed) for shot, path in found]
    assert said == [
        ("01_a.png", 1, "a sad <new1> dog", 0),
        ("01_b.png", 1, "a sad <new1> dog", 1),
        ("0_1.png", 0, "a <new1> dog at sea", 0),
        ("z.png", 1, "a sad <new1> dog", 2),
    ]


@pytest.mark.parametrize(
    ("name", "about", "prompts", "words"),
    [
        ("a.png", {}, None, "does not say its prompt; give --prompts_file"),
        ("a.png", {}, "a {}", "does not begin with a number below 1"),
        ("01_0.png", {}, "a {}", "does not begin with a number below 1"),
        ("0.png", {"prompt": "a cat"}, "a {}", "was drawn for 'a cat', which is not in"),
        ("grid.png", {"prompt": "a cat"}, None, "no generated images in"),
        ("0.png", {}, " \n", "is empty"),
    ],
)
def test_an_image_without_its_prompt_is_reported(tmp_path, name, about, prompts, words):
    save(tmp_path / "pictures", name, **about)
    file = None if prompts is None else tmp_path / "prompts.txt"
    if file:
        file.write_text(prompts)
    with pytest.raises(UserError, match=words):
        shots_of_folder(tmp_path / "pictures", file, "rex", "<new1>", "dog")


def test_braces_need_a_class_and_images_must_open(tmp_path):
    (tmp_path / "prompts.txt").write_text("a {}")
    save(tmp_path / "pictures", "00_0.png")
    with pytest.raises(UserError, match="give --cls_token"):
        shots_of_folder(tmp_path / "pictures", tmp_path / "prompts.txt", "rex", "<new1>", None)
    (tmp_path / "pictures" / "00_1.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match="cannot read image .*00_1.png"):
        shots_of_folder(tmp_path / "pictures", tmp_path / "prompts.txt", "rex", "<new1>", "dog")

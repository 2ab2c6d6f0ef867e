"""Captions beside images: which count, how they name the concept, and what is refused."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.concepts import DOG
from utils.common.errors import UserError
from utils.config.concepts import Concept
from utils.config.methods import METHODS
from utils.data.dataset import ClassDataset, ImageOptions, InstanceDataset
from utils.data.image_captions import name_subject, read_captions, shuffled_tags


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.JPG", "c.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return tmp_path


def captions(folder: Path) -> dict[str, str]:
    images = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg"))
    return {path.name: text for path, (text, _) in read_captions(folder, images).items()}


def test_text_files_and_metadata_in_one_folder(folder: Path):
    (folder / "a.txt").write_bytes("\ufeffa dog,\r\n on grass \n".encode())
    line = json.dumps({"file_name": "b.JPG", "text": "my dog", "width": 8})
    (folder / "metadata.jsonl").write_text(line + "\n\n")
    assert captions(folder) == {"a.png": "a dog, on grass", "b.JPG": "my dog"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"  \n", "a.txt holds an empty caption"),
        ("a.txt", b"\xff\xfe\x00", "a.txt is not UTF-8"),
        ("metadata.jsonl", b"{", "line 1 is not JSON"),
        (
            "metadata.jsonl",
            b'\n{"file_name": "a.png"}',
            'line 2 must be an object with "file_name" and "text"',
        ),
        ("metadata.jsonl", b'{"file_name": "z.png", "text": "x"}', "names z.png, which is not an image"),
        ("metadata.jsonl", b'{"file_name": "a.png", "text": 5}', "line 1 holds an empty caption"),
        (
            "metadata.jsonl",
            b'{"file_name": "a.png", "text": "x"}\n' * 2,
            "line 2 is a second caption of a.png",
        ),
    ],
)
def test_refused(folder: Path, name: str, content: bytes, message: str):
    (folder / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        captions(folder)
    assert message in str(error.value) and str(folder) in str(error.value)


def test_two_captions_of_one_image_are_refused(folder: Path):
    (folder / "a.txt").write_text("a dog")
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a dog"}')
    with pytest.raises(UserError, match="a.png has a caption in a.txt and in metadata.jsonl"):
        captions(folder)


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ("a <new1> dog asleep", "a <new1> dog asleep"),
        ("<new1> on a dog bed", "<new1> on a dog bed"),
        ("my dog beside another dog", "my <new1> dog beside another dog"),
        ("A DOG at sea", "A <new1> dog at sea"),
        ("hotdog stand, dog", "hotdog stand, <new1> dog"),
    ],
)
def test_token_stays_and_the_first_class_word_becomes_the_subject(caption: str, named: str):
    assert name_subject(caption, DOG, Path("a.txt")) == named


def test_class_of_two_words_and_methods_whose_token_is_the_noun():
    bear = replace(DOG, cls_token="teddy bear", subject="<new1>")
    assert name_subject("the teddy bear, a bear", bear, Path("a.txt")) == "the <new1>, a bear"


@pytest.mark.parametrize("concept", [DOG, replace(DOG, cls_token=None)])
def test_caption_without_the_concept_is_refused(concept: Concept):
    with pytest.raises(UserError, match="a.txt: 'dogs at sea' does not name the concept: write <new1>"):
        name_subject("dogs at sea", concept, Path("a.txt"))


def instances(folder: Path, **options) -> InstanceDataset:
    concept = replace(DOG, instance_data_dir=folder)
    view = (16, 4, 0, False, True)
    return InstanceDataset([concept], METHODS["classdiffusion"], *view, ImageOptions(**options))


def test_items_have_their_own_caption_or_the_prompt(folder: Path):
    (folder / "a.txt").write_text("a dog on grass")
    (folder / "notes.txt").write_text("to do")
    data = instances(folder)
    found = sorted(data.instance_item(number).caption for number in range(3))
    assert found == ["a <new1> dog on grass", "a photo of a <new1> dog", "a photo of a <new1> dog"]
    assert [path.name for path in data.skipped] == ["notes.txt"]


def test_dropout_empties_its_share_of_captions_and_changes_nothing_else(folder: Path):
    plain, dropped = instances(folder), instances(folder, caption_dropout=0.3)
    items = [dropped.instance_item(number) for number in range(600)]
    assert {item.caption for item in items} == {"", "a photo of a <new1> dog"}
    assert 0.25 < sum(not item.caption for item in items) / 600 < 0.35
    for number in range(20):
        assert plain.instance_item(number).pixels.equal(items[number].pixels)
    assert [dropped.instance_item(n).caption for n in range(50)] == [item.caption for item in items[:50]]


def test_shuffling_keeps_the_first_part_and_every_other(folder: Path):
    for name in "abc":
        (folder / f"{name}.txt").write_text("a dog, grass,sunny, blue sky")
    found = {instances(folder, shuffle_captions=True).instance_item(n).caption for n in range(60)}
    assert len(found) == 6 and "a <new1> dog, grass, sunny, blue sky" in found
    assert all(caption.startswith("a <new1> dog, ") for caption in found)
    assert shuffled_tags("no comma", random.Random(0)) == "no comma"


def test_class_images_with_captions_of_their_own(folder: Path):
    (folder / "c.txt").write_text("a sleeping dog")
    concept = replace(DOG, class_data_dir=folder, class_prompt="a photo of a dog")
    data = ClassDataset([concept], 16, 4, seed=0, num_class_images=3)
    captions = sorted(data.class_item(number).caption for number in range(3))
    assert captions == ["a photo of a dog", "a photo of a dog", "a sleeping dog"]
    (folder / "c.txt").write_text("a sleeping <new1> dog")
    with pytest.raises(UserError, match="c.txt: the caption of a class image holds <new1>"):
        ClassDataset([concept], 16, 4, seed=0, num_class_images=3)

"""Readers of the datasets, on tiny hand-made copies of each published form."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from utils.common.errors import UserError
from utils.evaluation.data_sets import (
    Individual,
    Subject,
    check_template,
    chosen,
    copy_pictures,
    in_folders,
    read_templates,
)
from utils.evaluation.dreambench_plus import read_dreambench_plus
from utils.evaluation.published_sets import (
    read_customconcept101,
    read_customconcept101_pairs,
    read_dreambooth,
)

DREAMBOOTH = """Classes

subject_name,class
mug_2,coffee mug
rex,dog

Prompts

Object Prompts

prompt_list = [
'a {0} {1} under a tree'.format(unique_token, class_token),
"a {0} {1} on the king's chair".format(unique_token, class_token),
'a grey {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} under a tree'.format(unique_token, class_token),
'a {0} {1} with a bow tie'.format(unique_token, class_token)
]
"""


def picture(folder: Path) -> None:
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "00.jpg")


def dreambooth(root: Path, text: str = DREAMBOOTH) -> Path:
    for name in ("mug_2", "rex"):
        picture(root / name)
    (root / "prompts_and_classes.txt").write_text(text)
    return root


def entry(name: str, token: str, word: str) -> dict[str, str]:
    return {
        "instance_prompt": f"photo of a {token} {word}",
        "class_prompt": word,
        "instance_data_dir": f"./benchmark_dataset/{name}",
        "class_data_dir": f"./regularization/{name}",
        "prompt_filename": f"prompts/{word}.txt",
    }


@pytest.fixture
def custom(tmp_path: Path) -> Path:
    for name in ("pet_a", "chair_b"):
        picture(tmp_path / "benchmark_dataset" / name)
    dog, chair = entry("pet_a", "<new1>", "dog"), entry("chair_b", "<new2>", "chair")
    (tmp_path / "dataset.json").write_text(
        json.dumps([dog, chair | {"prompt_filename": "prompts/chair.txt"}])
    )
    pair = [dog, chair, {"prompt_filename_compose": "prompts/both.txt"}]
    (tmp_path / "dataset_multiconcept.json").write_text(json.dumps([pair, pair]))
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "dog.txt").write_text("Photo of a {}.\n{} asleep. \n\na sad {}")
    (tmp_path / "prompts" / "chair.txt").write_text("a {} of stone\n")
    (tmp_path / "prompts" / "both.txt").write_text("the {0} on the {1}\n{1} and {0}")
    return tmp_path


def dreambench(root: Path, **files: tuple[str, int]) -> Path:
    """A copy of DreamBench++: 'category/NN' -> (noun, prompts after it)."""
    for place, (noun, count) in files.items():
        category, number = place.split("_")
        for part in ("images", "captions"):
            (root / part / category).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7), "red").save(root / "images" / category / f"{number}.jpg")
        lines = [f"A photo of a {noun} in the snow", "a Red MUG, by the sea", "a city {by night}"]
        lines += [f"a {noun} {i}" for i in range(count)]
        (root / "captions" / category / f"{number}.txt").write_text("\n".join([noun, *lines[:count]]) + "\n")
    return root


def test_dreambench_plus_is_read_in_its_own_layout(tmp_path):
    root = dreambench(tmp_path / "copy" / "data", object_03=("red mug", 9), animal_00=("cat", 9))
    cat, mug = read_dreambench_plus(tmp_path / "copy")
    assert read_dreambench_plus(root, ["object_03_red_mug"]) == [mug]
    assert (mug.name, mug.cls, mug.category, mug.live) == ("object_03_red_mug", "red mug", "object", False)
    assert (cat.name, cat.category, cat.live) == ("live_subject_animal_00_cat", "animal", True)
    assert mug.templates[:3] == (
        "A photo of a {} in the snow",
        "a {}, by the sea",
        "a city {{by night}}, {}",
    )
    assert mug.prompts[2] == "a city {by night}, <new1> red mug" and len(mug.prompts) == 9
    (each,) = mug.individuals
    assert each.picture == root / "images" / "object" / "03.jpg"
    (placed,) = in_folders([mug], tmp_path / "pictures")
    copy_pictures([placed])
    (copy,) = (tmp_path / "pictures" / "object_03_red_mug").iterdir()
    assert copy.name == "0.jpg" and copy.read_bytes() == each.picture.read_bytes()
    assert placed.describe()["pictures"] == [str(copy)] and placed.describe()["category"] == "object"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no images/..*.jpg in"),
        ({"object_00": ("mug", 8)}, "00.txt has 8 prompts after its noun, not 9"),
        ({"object_00": ("../mug", 9)}, "subject 'object_00_../mug' has a path separator"),
    ],
)
def test_a_copy_of_dreambench_plus_that_is_not_whole_is_reported(tmp_path, files, words):
    with pytest.raises(UserError, match=words):
        read_dreambench_plus(dreambench(tmp_path, **files))
    dreambench(tmp_path, object_01=("mug", 9))
    (tmp_path / "captions" / "object" / "01.txt").unlink()
    with pytest.raises(UserError, match="(01.txt is missing|after its noun|path separator)"):
        read_dreambench_plus(tmp_path)


def test_dreambooth_subjects_have_their_class_their_kind_and_its_prompts(tmp_path):
    mug, rex = read_dreambooth(dreambooth(tmp_path))
    assert (mug.name, mug.cls, mug.live) == ("mug_2", "coffee mug", False)
    assert (rex.name, rex.cls, rex.live) == ("rex", "dog", True)
    assert mug.templates == ("a {} under a tree", "a {} on the king's chair", "a grey {}")
    assert rex.prompts == ["a <new1> dog under a tree", "a <new1> dog with a bow tie"]
    assert mug.class_prompts[2] == "a grey coffee mug"
    assert mug.individuals[0] == Individual(
        "<new1>", "coffee mug", tmp_path / "mug_2", "a photo of a <new1> coffee mug"
    )


def test_dreambooth_reads_the_whole_repository_and_the_subjects_asked_for(tmp_path):
    dreambooth(tmp_path / "dataset")
    (tmp_path / "dataset" / "mug_2" / "00.jpg").unlink()
    assert [subject.name for subject in read_dreambooth(tmp_path, ["rex"])] == ["rex"]
    with pytest.raises(UserError, match="lacks images in mug_2; complete your copy, or name the subjects"):
        read_dreambooth(tmp_path)
    with pytest.raises(UserError, match="no subject cat9; it has mug_2, rex"):
        read_dreambooth(tmp_path, ["rex", "cat9"])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("subject_name,class", "names", "not of the published form"),
        ("Live Subject Prompts", "Others", "not of the published form"),
        ("rex,dog", "rex dog", "'rex dog' is not a subject and its class"),
        ("'a grey {0} {1}'", "'a grey {2} thing'", "'a grey {2} thing'; write {}"),
        (".format(", " % (", "a list without prompts"),
    ],
)
def test_a_dreambooth_file_of_another_form_is_reported(tmp_path, old, new, words):
    root = dreambooth(tmp_path, DREAMBOOTH.replace(old, new))
    with pytest.raises(UserError) as mistake:
        read_dreambooth(root)
    assert words in str(mistake.value) and "\n" not in str(mistake.value)


def test_dreambooth_prompts_are_not_executed(tmp_path):
    trap = f"__import__('pathlib').Path({str(tmp_path / 'trap')!r}).touch()"
    read_dreambooth(
        dreambooth(tmp_path / "d", DREAMBOOTH.replace("prompt_list = [", f"{trap}\nprompt_list = ["))
    )
    assert not (tmp_path / "trap").exists()


def test_customconcept101_subjects_are_named_as_their_folders(custom):
    dog, chair = read_customconcept101(custom)
    assert (dog.name, dog.cls, dog.live) == ("pet_a", "dog", None)
    assert dog.prompts == ["Photo of a <new1> dog.", "<new1> dog asleep.", "a sad <new1> dog"]
    assert dog.individuals[0].instance_prompt == "photo of a <new1> dog"
    assert dog.describe()["pictures"] == [str(custom / "benchmark_dataset/pet_a/00.jpg")]
    assert chair.individuals[0].token == "<new2>" and chair.templates == ("a {} of stone",)


def test_customconcept101_pairs_are_learned_together(custom):
    pair, again = read_customconcept101_pairs(custom)
    assert (pair.name, pair.cls) == ("pet_a+chair_b", "dog+chair")
    assert pair.prompts == ["the <new1> dog on the <new2> chair", "<new2> chair and <new1> dog"]
    assert pair.class_prompts == ["the dog on the chair", "chair and dog"]
    assert again.name == "pet_a+chair_b-2"
    assert [each.token for each in pair.individuals] == ["<new1>", "<new2>"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: (root / "dataset.json").unlink(), "no dataset.json"),
        (lambda root: (root / "dataset.json").write_text("[{"), "not valid JSON"),
        (lambda root: (root / "dataset.json").write_text("{}"), "no list of concepts"),
        (lambda root: (root / "dataset.json").write_text('[{"a": 1}]'), "entry 1 has 0 concepts"),
        (
            lambda root: (root / "dataset.json").write_text(json.dumps([entry("pet_a", "my", "dog")])),
            "no token such as <new1>",
        ),
        (lambda root: (root / "prompts/dog.txt").unlink(), "lacks file prompts/dog.txt; complete your copy"),
        (lambda root: (root / "prompts/dog.txt").write_text("a dog"), "'a dog'; write {}"),
        (
            lambda root: (root / "benchmark_dataset/pet_a/00.jpg").unlink(),
            "lacks images in benchmark_dataset/pet_a;",
        ),
    ],
)
def test_a_customconcept101_copy_that_lacks_something_is_reported(custom, change, words):
    change(custom)
    with pytest.raises(UserError) as mistake:
        read_customconcept101(custom)
    assert words in str(mistake.value) and "\n" not in str(mistake.value)


@pytest.mark.parametrize("template", ["a dog", "a {1}", "a {dog}", "a {", "{0.real.x}"])
def test_a_template_names_its_individual_and_nothing_else(template):
    with pytest.raises(UserError, match="here is .*; write {} where the subject stands"):
        check_template(template, 1, "here")
    check_template("{} and {}" if template == "a dog" else "a {0}", 2, "here")


def test_a_prompts_file_may_be_that_of_inference(tmp_path):
    dog, barn = (Individual(f"<new{i}>", word, tmp_path, "") for i, word in ((1, "dog"), (2, "barn")))
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffa {} asleep\n\na <new1> dog at sea\na <new1> on ice\n", encoding="utf-8")
    assert read_templates(file, [dog]) == ("a {} asleep", "a {} at sea", "a {} on ice")
    file.write_text("a <new1> dog in a <new2> barn\n{1} alone\n")
    assert read_templates(file, [dog, barn]) == ("a {0} in a {1}", "{1} alone")
    file.write_text("a <new1> dog\na dog\n")
    with pytest.raises(UserError, match="line 2 is 'a dog'"):
        read_templates(file, [dog])
    file.write_bytes(b"\xff\xfe\x00 {}")
    with pytest.raises(UserError, match="not UTF-8 text"):
        read_templates(file, [dog])


def test_two_individuals_of_one_subject_fill_their_places():
    two = tuple(Individual(f"<new{i}>", word, Path(), "") for i, word in ((1, "teddy bear"), (2, "barn")))
    subject = Subject("both", two, ("a {0} in front of a {1}",))
    assert subject.prompts == ["a <new1> teddy bear in front of a <new2> barn"]
    assert subject.class_prompts == ["a teddy bear in front of a barn"]


def test_a_partial_copy_says_all_that_is_missing_at_once(tmp_path, custom):
    shutil.rmtree(custom / "benchmark_dataset")
    (custom / "prompts" / "chair.txt").unlink()
    with pytest.raises(UserError) as mistake:
        read_customconcept101(custom)
    lacks = "folder benchmark_dataset/pet_a, folder benchmark_dataset/chair_b, file prompts/chair.txt"
    assert str(mistake.value) == (
        f"{custom} lacks {lacks}; complete your copy, or name the subjects that it holds with --subjects"
    )


def test_an_unknown_subject_of_many_is_answered_with_those_alike():
    known = [f"pet_{i}" for i in range(100)]
    with pytest.raises(UserError, match=r"set has no subject pet_1000; it has 100 others, e\.g\. pet_"):
        chosen(["pet_1000"], known, "set")
    assert (
        chosen(["pet_2", "pet_1"], known, "set") == ["pet_2", "pet_1"] and chosen([], known, "set") == known
    )

"""Each analysis as a command on the tiny model: from a trained folder to numbers and charts; mistakes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import inference
from scripts import analyse, evaluate
from tests.faults.commands import call
from tests.tiny_scorers import write_scorers
from utils.bases import registry
from utils.bases.registry import Base, Sampling
from utils.common.errors import UserError


@pytest.fixture
def tiny(tiny_base, tmp_path, monkeypatch) -> str:
    """The tiny model under a name, with judges of its own and quick sampling."""
    row = Base("tiny", str(tiny_base), judges=write_scorers(tmp_path / "s"), sampling=Sampling(2, 3.0, 0.0))
    monkeypatch.setitem(registry.BASES, "tiny", row)
    return "tiny"


@pytest.fixture
def concept(train, tiny, tmp_path) -> Path:
    settings = {"max_train_steps": 4, "checkpointing_steps": 2, "method": "kv_only", "learning_rate": 1e-2}
    return train(tmp_path / "dog", pretrained_model_name_or_path=tiny, **settings)


def read(folder: Path, name: str) -> dict:
    for suffix in ("png", "svg"):
        assert any(path.stat().st_size > 2000 for path in folder.glob(f"*.{suffix}"))
    return json.loads((folder / f"{name}.json").read_text())


def test_semantic_space_over_steps(concept, train, tiny, tmp_path, capsys):
    inversion = train(
        tmp_path / "inversion",
        pretrained_model_name_or_path=tiny,
        method="textual_inversion",
        instance_prompt=None,
        learning_rate=1e-1,
    )
    out = tmp_path / "out"
    flags = ["--other_classes", "cat,barn", "--num_class_images", "1", "--output_dir", str(out)]
    analyse.main(["semantic_space", str(concept), str(inversion), *flags])
    results = read(out, "semantic_space")
    assert results["classes"] == ["dog", "cat", "barn"] and results["seed"] == 0
    dog = [record for record in results["records"] if record["concept"] == "dog"]
    assert [record["step"] for record in dog] == [0, 2, 4]
    zero = {"layers": 0.0, "prediction": 0.0, "relative": 0.0}
    assert dog[0]["drift"] == zero and dog[0]["to_class"] > 0  # a rare word stands before the class
    assert 0 < dog[1]["drift"]["layers"] < dog[2]["drift"]["layers"]
    assert dog[1]["drift"]["prediction"] > 0
    assert dog[2]["to_others"] == pytest.approx(
        (dog[2]["distances"]["cat"] + dog[2]["distances"]["barn"]) / 2
    )
    assert all(record["class_moved"] == 0.0 for record in dog)
    own = [record for record in results["records"] if record["concept"] == "inversion"]
    assert own[0]["to_class"] == 0.0 and own[-1]["to_class"] > 0  # it starts as its class
    assert all(record["drift"] == zero for record in own)  # no prompt without the token moves
    assert f"charts in {out / 'semantic_space.png'}" in capsys.readouterr().out


def test_attention_maps_of_scenes_and_samples(concept, tmp_path, capsys):
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    Image.new("RGB", (16, 16), "teal").save(scenes / "0.png")
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[:8] = 255
    Image.fromarray(mask).save(scenes / "m.png")
    scene = {
        "image": "0.png",
        "prompt": "a {} wearing headphones",
        "masks": {"{}": "m.png", "headphones": "m.png"},
    }
    (scenes / "scenes.json").write_text(json.dumps({"class": "dog", "scenes": [scene]}))
    out = tmp_path / "out"
    asked = ["--prompt", "a {} on the beach", "--num_images", "1", "--output_dir", str(out)]
    analyse.main(["attention_maps", str(concept), "--scenes", str(scenes), *asked])
    results = read(out, "attention_maps")
    (of_base,), (of_dog,) = (results["scenes"]["records"][name] for name in ("base", "dog"))
    assert (
        of_base["prompt"] == "a dog wearing headphones"
        and of_dog["prompt"] == "a <new1> dog wearing headphones"
    )
    assert of_dog["area"] == {"<new1>": 0.5, "dog": 0.5, "headphones": 0.5}
    assert all(0.2 < share < 0.8 for share in of_dog["inside"].values())
    assert sum(of_dog["share"].values()) == pytest.approx(1)
    assert list(of_dog["kl_to_context"]["<new1>"]) == ["headphones"]
    (sampled,) = results["samples"]["records"]["dog"]
    assert sampled["prompt"] == "a <new1> dog on the beach" and sampled["inside"] == {}
    assert {path.name for path in out.glob("*.png")} == {
        f"{name}.png" for name in ("scenes", "scenes_heat", "samples", "samples_heat")
    }
    again = tmp_path / "again"
    analyse.main(["attention_maps", str(concept), "--scenes", str(scenes), *asked[:-1], str(again)])
    assert (again / "attention_maps.json").read_bytes() == (out / "attention_maps.json").read_bytes()
    assert "scenes, dog: share: " in capsys.readouterr().out


@pytest.mark.parametrize("method", ["xti", "neti"])
def test_attention_maps_of_rows_of_each_layer(train, tiny, tmp_path, method):
    settings = {"method": method, "instance_prompt": None, "pretrained_model_name_or_path": tiny}
    concept = train(tmp_path / method, **settings)
    out = tmp_path / "out"
    analyse.main(["attention_maps", str(concept), "--num_images", "1", "--output_dir", str(out)])
    (record,) = read(out, "attention_maps")["samples"]["records"][method]
    assert record["prompt"] == "a photo of a <new1> wearing headphones on the beach"
    assert record["class"] is None and 0 < record["share"]["<new1>"] < 1


def test_a_token_without_text_states_is_refused_where_they_are_read(train, tiny, tmp_path):
    settings = {"method": "neti", "instance_prompt": None, "pretrained_model_name_or_path": tiny}
    concept, out = train(tmp_path / "neti", **settings), tmp_path / "out"
    drawing = [f"--output_dir={out}", "--embedding_adjustment=0.5"]
    for command in (
        lambda: analyse.main(["semantic_space", str(concept), "--output_dir", str(out)]),
        lambda: analyse.main(["conditional_spread", str(concept), "--output_dir", str(out)]),
        lambda: inference.main([f"--concept={concept}", "--prompt=a <new1>", *drawing]),
        lambda: evaluate.main(["concept", str(concept), *drawing]),
        lambda: evaluate.main(["dataset", "toon", "--methods=neti", *drawing]),
    ):
        with pytest.raises(UserError, match="there are no text states to read"):
            command()
    assert not out.exists()


def test_conditional_spread_of_text_and_images(concept, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["--num_phrases", "12", "--num_images", "8", "--other_classes", "cat", "--output_dir", str(out)]
    analyse.main(["conditional_spread", str(concept), *flags])
    results = read(out, "conditional_spread")
    numbers = results["text"]["numbers"]["dog"]
    names = ["class in the base", "cat in the base", "concept before training"]
    assert list(numbers) == [*names, "class after training", "concept after training"]
    # K and V alone learn nothing of the text: the class stays where it is.
    assert numbers["class after training"] == numbers["class in the base"]
    assert numbers["class in the base"]["overlap"] == pytest.approx(1)
    assert 0 < numbers["concept after training"]["overlap"] < 1
    assert len(results["text"]["points"]["dog"]["concept after training"]) == len(results["contexts"])
    images = results["images"]["numbers"]["dog"]
    assert list(images) == ["class in the base", "class after training", "concept after training"]
    assert images["class after training"]["overlap"] < 1  # K and V change what the class looks like
    assert {path.name for path in out.glob("*.png")} == {"text.png", "images.png"}
    assert "text, dog: class in the base " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "flags", "words"),
    [
        ("semantic_space", ["nowhere"], "nowhere does not exist"),
        ("semantic_space", ["nowhere", "--other_classes", "cat,,car"], "words joined by commas"),
        ("semantic_space", ["nowhere", "--num_class_images", "0"], "at least 1"),
        ("attention_maps", ["nowhere", "--prompt", "a dog"], "write {} as a word of its own"),
        ("conditional_spread", ["nowhere", "--num_images", "5"], "at least 8"),
        ("conditional_spread", ["nowhere", "--num_images", "70"], "more than --num_phrases 64"),
        ("conditional_spread", ["nowhere", "--num_images", "0", "--dino", "x"], "--dino has no effect"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(command, flags, words, tmp_path):
    end = call(analyse.main, [command, *flags, f"--output_dir={tmp_path}"])
    assert end.refused and words in end.stderr


def test_what_only_the_folders_tell_is_refused_before_a_model_loads(concept, train, tmp_path, monkeypatch):
    monkeypatch.setattr(analyse, "open_model", None)
    with pytest.raises(UserError, match="given twice"):
        analyse.main(["semantic_space", str(concept), str(concept)])
    with pytest.raises(UserError, match="own class; add another"):
        analyse.main(
            ["semantic_space", str(concept), "--other_classes", "dog", "--output_dir", str(tmp_path / "o")]
        )
    barn = train(tmp_path / "barn", cls_token="barn", instance_prompt="a <new1> barn", method="kv_only")
    with pytest.raises(UserError, match="classes barn, dog; compare those of one class"):
        analyse.main(["attention_maps", str(concept), str(barn), "--base", "tiny"])
    (barn / "training_config.json").unlink()
    with pytest.raises(UserError, match="has no training_config.json"):
        analyse.main(["conditional_spread", str(barn), "--base", "tiny"])

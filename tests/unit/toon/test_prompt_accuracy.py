"""Which concepts are judged by which prompts."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from scripts.toon import prompt_accuracy
from scripts.toon.models.part_reader import parts_of
from scripts.toon.prompt_accuracy import (
    Flags,
    judge_base,
    judge_pair,
    parts_obeyed,
    trained_concept,
    trained_concepts,
)
from scripts.toon.world.examples import EXAMPLES
from scripts.toon.world.prompts import PartPrompt
from tests.concepts import DOG
from utils.common.errors import UserError
from utils.config.concepts import Concept


def concept(token: str, kind: str) -> Concept:
    return replace(DOG, modifier_token=token, cls_token=kind, instance_prompt=f"a photo of a {token} {kind}")


def test_a_pair_is_judged_as_its_classes_and_then_by_name(tmp_path, monkeypatch):
    events = []

    class Likeness:
        def __init__(self, config, concept):
            self.kind = concept.cls_token

        def of_portraits(self, pipeline, subject):
            events.append(subject)
            return 0.5 if self.kind == "barn" else 0.25

    def judge(config, pipeline, name, prompts, per_prompt):
        events.append((prompts[1][0], prompts[1][1], per_prompt))
        return {"all": (1.0, 7)}, []

    monkeypatch.setattr(prompt_accuracy, "Likeness", Likeness)
    monkeypatch.setattr(prompt_accuracy, "judge", judge)
    monkeypatch.setattr("utils.concepts.load.load_concept", lambda pipeline, path: events.append(path))
    pair = (concept("<a>", "cat"), concept("<b>", "barn"))
    results = judge_pair(Flags(concept=tmp_path, images=2), None, *pair)
    facts = {"class": "cat", "neighbour": "barn", "place": "beach"}
    assert events == [
        ("a photo of a cat in front of a barn on the beach", facts, 2),
        "cat",
        "barn",
        tmp_path,
        ("a photo of a <a> cat in front of a <b> barn on the beach", facts, 2),
        "<a> cat",
        "<b> barn",
    ]
    assert results["concept likeness"] == [0.25, 0.5] and results["class"] == {"all": (1.0, 7)}


def test_one_concept_or_one_and_a_barn_can_be_judged(tmp_path, monkeypatch):
    def of(*kinds):
        (tmp_path / "training_config.json").touch()
        found = [concept(f"<{kind}>", kind) for kind in kinds]
        config = type("Config", (), {"concepts": lambda self: found})()
        monkeypatch.setattr("utils.config.train_config.read_config", lambda path: (config,))
        return tmp_path

    assert [each.cls_token for each in trained_concepts(of("dog"))] == ["dog"]
    assert [each.cls_token for each in trained_concepts(of("teddy bear", "barn"))] == ["teddy bear", "barn"]
    with pytest.raises(UserError, match="has 2 concepts; give one of one concept"):
        trained_concept(of("teddy bear", "barn"))
    for kinds in (("dog", "cat"), ("person",), ("dog", "barn", "barn")):
        with pytest.raises(UserError, match="has the classes .*; give one concept of dog"):
            trained_concepts(of(*kinds))


def test_a_folder_that_no_training_wrote_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no training_config.json"):
        trained_concepts(tmp_path)


@pytest.mark.parametrize(("flags", "count"), [({}, 16), ({"portraits": 3}, 3)])
def test_likeness_is_of_as_many_portraits_as_asked(tmp_path, monkeypatch, flags, count):
    encoder = SimpleNamespace(image_features=list)
    monkeypatch.setattr("utils.scores.encoders.ClipEncoder", lambda *_: encoder)
    monkeypatch.setattr("utils.sampling.images.sample", lambda _, texts, *more, **_2: texts)
    monkeypatch.setattr(prompt_accuracy.Likeness, "of", lambda self, images: len(images))
    likeness = prompt_accuracy.Likeness(Flags(concept=tmp_path, **flags), concept("<a>", "cat"))
    assert likeness.of_portraits(None, "<a> cat") == count


def test_portraits_are_of_a_concept():
    with pytest.raises(UserError, match="--portraits has no effect without --concept"):
        Flags(portraits=3)


def test_named_parts_and_the_body_are_judged_and_nothing_else(monkeypatch):
    prompts = [
        PartPrompt("a photo of a white dog with purple ears", EXAMPLES["dog"], ("ear",)),
        PartPrompt("a photo of a white dog with a red collar", EXAMPLES["dog"], ("collar",)),
    ]
    true = parts_of(EXAMPLES["dog"])
    read = [true, replace(true, ear="red"), replace(true, marking="none"), replace(true, body="grey")]
    reader = type("Reader", (), {"read": lambda self, images: read})
    monkeypatch.setattr("scripts.toon.models.part_reader.PartReader", reader)
    assert parts_obeyed(prompts, 2, [None] * 4) == {
        "body": (0.75, 4),
        "ear": (0.5, 2),
        "all": (0.5, 4),
        "collar": (1.0, 2),
    }


def test_a_base_is_judged_by_words_seen_and_held_out_and_by_named_parts(tmp_path, monkeypatch):
    drawn = []

    def draw(pipeline, texts, per_prompt, grid, **settings):
        drawn.append((grid.name, len(texts), per_prompt))
        return []

    monkeypatch.setattr(prompt_accuracy, "draw", draw)
    monkeypatch.setattr(prompt_accuracy, "obeyed", lambda *given: {"all": (0.5, 3)})
    monkeypatch.setattr(prompt_accuracy, "parts_obeyed", lambda *given: {"ear": (0.25, 3)})
    results = judge_base(Flags(prompts=3, output_dir=tmp_path), None)
    assert drawn == [("seen.png", 3, 1), ("held-out.png", 3, 1), ("named-parts.png", 3, 1)]
    shares = {"all": (0.5, 3)}
    assert results == {"seen": shares, "held out": shares, "named parts": {"ear": (0.25, 3)}}

"""The reader of an individual's parts."""

import torch

from scripts.toon.draw_examples import EXAMPLES
from scripts.toon.part_reader import PARTS, SIZES, alike, bare, build, loss, readings, true_parts, usual
from scripts.toon.world import ANIMALS, MARKINGS

DOG = true_parts(EXAMPLES["dog"])


def logits_of(look) -> torch.Tensor:
    """(1, 22): those of a perfect reader."""
    truth = true_parts(look)
    colours = [channel / 255 for part in list(truth)[:5] for channel in truth[part] or (0, 0, 0)]
    collar = [0.0, 9.0] if look.collar else [9.0, 0.0]
    return torch.tensor([colours + collar + [9.0 * (kind == look.marking) for kind in MARKINGS]])


def test_a_perfect_reader_reads_the_truth_and_has_the_lowest_loss():
    scene = bare("x", 1)[0]
    logits = logits_of(scene.subject)
    assert readings(logits)[0] == true_parts(scene.subject)
    assert loss(logits, [scene]) < 1e-3
    off = logits.clone()
    off[0, 0] += 0.5  # the red of its body
    there = sum(value is not None for part, value in true_parts(scene.subject).items() if part != "kind")
    assert torch.isclose(loss(off, [scene]) - loss(logits, [scene]), torch.tensor(20 * 0.25 / 3 / there))


def test_readings_agree_part_by_part():
    assert alike(DOG, DOG) == dict.fromkeys(PARTS, True)
    other = DOG | {"ear": (250, 250, 250), "collar": None}
    assert alike(DOG, other) == dict.fromkeys(PARTS, True) | {"ear": False, "collar": False}
    assert not alike(DOG, DOG | {"kind": "stripes"})["marking"]
    assert not alike(DOG, DOG | {"mark": (255, 255, 255)})["marking"]
    near = tuple(channel - 30 for channel in DOG["body"])
    assert alike(DOG, DOG | {"body": near})["body"]


def test_the_usual_reading_is_that_of_most_images():
    wrong = DOG | {"collar": None, "kind": "none", "mark": None, "ear": (0, 0, 0)}
    assert usual([DOG, DOG, wrong]) == DOG
    assert usual([wrong, wrong, DOG])["collar"] is None
    assert usual([wrong, wrong, DOG])["mark"] is None


def test_scenes_to_learn_from_show_every_part():
    scenes = bare("y", 50)
    assert {scene.subject.kind for scene in scenes} == set(ANIMALS)
    assert {(scene.worn, scene.neighbour) for scene in scenes} == {("nothing", "nothing")}
    assert bare("y", 3) == scenes[:3]


def test_the_model_has_an_output_for_each_value():
    assert build().config.num_labels == sum(SIZES) == 22

"""The renderer draws the images that the embedded models learned from, bit for bit."""

import hashlib

import pytest

from scripts.toon.models.training import scenes
from scripts.toon.world import world
from scripts.toon.world.places import BACKGROUNDS, NEIGHBOURS
from scripts.toon.world.render import render

# Before the renderer was split into files; Pillow 13.0.0.
RECORDED = "ee1fc0d27e61c70b8a370f2e0d3d5786ccc9d672ffd415fe2eb6b29b80abc3b5"


def test_images_are_as_recorded():
    drawn = scenes("render-hash", 80) + scenes("render-hash-held-out", 20, held_out=True)
    assert {scene.place for scene in drawn} == set(world.PLACES)
    assert {scene.subject.kind for scene in drawn} == set(world.KINDS)
    assert {scene.pose for scene in drawn} == set(world.POSES)
    digest = hashlib.sha256(b"".join(render(scene, 64).tobytes() for scene in drawn))
    assert digest.hexdigest() == RECORDED


def test_every_place_and_neighbour_has_a_drawing():
    assert tuple(BACKGROUNDS) == world.PLACES
    assert {"nothing", "barn", *NEIGHBOURS} == set(world.NEIGHBOURS)


@pytest.mark.parametrize("size", [32, 64])
def test_an_image_has_the_size_that_is_asked_for(size):
    assert render(scenes("size", 1)[0], size).size == (size, size)

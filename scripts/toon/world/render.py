"""Draw a toon `Scene` with Pillow: `render(scene, size)` gives an RGB image of size x size pixels."""

import math
import random

from PIL import Image, ImageDraw

from scripts.toon.world.animals import draw_animal
from scripts.toon.world.objects import OBJECT_SHAPES, draw_barn
from scripts.toon.world.pen import Pen, shade
from scripts.toon.world.places import BACKGROUNDS, NEIGHBOURS
from scripts.toon.world.world import Scene

SUPERSAMPLE = 4


def render(scene: Scene, size: int = 64) -> Image.Image:
    """Draw the scene at `size` x `size` pixels, supersampled four times."""
    side = size * SUPERSAMPLE
    image = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(image)
    BACKGROUNDS[scene.place](Pen(draw, side, 0, 0, 1), random.Random(scene.seed))
    if scene.barn is not None:
        draw_barn(Pen(draw, side, 0.5, scene.ground + 0.04, 0.76), scene.barn)
    elif scene.neighbour != "nothing":
        NEIGHBOURS[scene.neighbour](Pen(draw, side, 0.82, scene.ground, 1.0))
    look = scene.subject
    if look.kind in OBJECT_SHAPES:
        shape, factor = OBJECT_SHAPES[look.kind]
        shape(Pen(draw, side, scene.x, scene.ground, scene.scale * factor, scene.faces_left), look)
    else:
        lift = 0.1 + 0.06 * math.sin(2 * math.pi * scene.phase) if scene.pose == "jumping" else 0.0
        if lift:
            _shadow(image, draw, scene, lift)
        draw_animal(Pen(draw, side, scene.x, scene.ground + lift, scene.scale, scene.faces_left), look, scene)
    return image.reduce(SUPERSAMPLE)


def _shadow(image: Image.Image, draw: ImageDraw.ImageDraw, scene: Scene, lift: float) -> None:
    """Below a jumper, the smaller the higher it is, in the ground's colour, darker."""
    side = image.width
    floor = image.getpixel((int(scene.x * side), int((1 - scene.ground) * side)))
    radius = 0.16 - 0.3 * (lift - 0.1)
    Pen(draw, side, 0, 0, 1).oval(scene.x, scene.ground, radius, 0.03, shade(floor, 0.6), line=False)

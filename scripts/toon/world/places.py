"""How toon's places and what stands beside a subject are drawn: a function each, in two tables."""

import math
import random
from collections.abc import Callable

from scripts.toon.world.pen import Pen, shade
from scripts.toon.world.world import RGB


def _plain(pen: Pen, rng: random.Random) -> None:
    wall: RGB = tuple(rng.randint(196, 240) for _ in range(3))
    pen.box(0, 0, 1, 1, wall, line=False)
    pen.box(0, 0, 1, rng.uniform(0.16, 0.26), shade(wall, 0.84), line=False)


def _beach(pen: Pen, rng: random.Random) -> None:
    pen.box(0, 0, 1, 1, (150, 214, 246), line=False)
    pen.oval(rng.choice((0.13, 0.87)), rng.uniform(0.84, 0.9), 0.09, 0.09, (255, 226, 90), line=False)
    horizon = rng.uniform(0.44, 0.52)
    pen.box(0, 0, 1, horizon, (40, 136, 200), line=False)
    pen.box(0, 0, 1, horizon - 0.16, (248, 222, 150), line=False)


def _snow(pen: Pen, rng: random.Random) -> None:
    pen.box(0, 0, 1, 1, (188, 206, 232), line=False)
    for x in (rng.uniform(0.02, 0.14), rng.uniform(0.86, 0.98)):
        for y, w in ((0.36, 0.14), (0.48, 0.11), (0.6, 0.08)):
            pen.poly([(x - w, y), (x + w, y), (x, y + 0.2)], (70, 120, 112), line=False)
    pen.oval(0.5, 0.1, 0.9, 0.28, (248, 250, 254), line=False)
    for _ in range(12):
        pen.oval(rng.random(), rng.uniform(0.5, 1), 0.016, 0.016, (255, 255, 255), line=False)


def _jungle(pen: Pen, rng: random.Random) -> None:
    pen.box(0, 0, 1, 1, (32, 84, 48), line=False)
    for _ in range(16):
        green = rng.choice(((24, 104, 52), (54, 132, 60), (20, 66, 40), (86, 150, 62)))
        x, y = rng.random(), rng.uniform(0.25, 1)
        pen.oval(x, y, rng.uniform(0.08, 0.16), rng.uniform(0.04, 0.08), green, line=False)
    pen.box(0, 0, 1, 0.16, (92, 62, 38), line=False)


def _street(pen: Pen, rng: random.Random) -> None:
    pen.box(0, 0, 1, 1, (58, 52, 104), line=False)
    x = -0.02
    while x < 1:
        w, top = rng.uniform(0.14, 0.22), rng.uniform(0.55, 0.95)
        wall = rng.choice(((84, 92, 130), (100, 84, 118), (72, 78, 110)))
        pen.box(x, 0.2, x + w, top, wall, line=False)
        for wx in (0.25, 0.65):
            for row in range(1, 8):
                wy = 0.2 + row * 0.09
                if wy + 0.04 < top and rng.random() < 0.7:
                    pen.box(x + w * wx, wy, x + w * wx + 0.035, wy + 0.04, (252, 222, 110), line=False)
        x += w + 0.01
    pen.box(0, 0, 1, 0.22, (74, 74, 82), line=False)
    for x in (0.08, 0.42, 0.76):
        pen.box(x, 0.09, x + 0.16, 0.12, (240, 240, 240), line=False)


def _pool(pen: Pen, rng: random.Random) -> None:
    pen.box(0, 0, 1, 1, (236, 240, 238), line=False)
    for x in range(1, 6):
        pen.box(x / 6 - 0.006, 0.6, x / 6 + 0.006, 1, (206, 218, 220), line=False)
    pen.box(0, 0.78, 1, 0.792, (206, 218, 220), line=False)
    pen.box(0, 0, 1, 0.62, (60, 190, 214), line=False)
    pen.box(0, 0.58, 1, 0.63, (250, 250, 250), line=False)
    for _ in range(9):
        pen.ring(rng.random(), rng.uniform(0.05, 0.5), 0.07, 0.025, (220, 246, 250), 0.016, 0, 180)


def _grass(pen: Pen, rng: random.Random) -> None:
    pen.box(0, 0, 1, 1, (142, 200, 250), line=False)
    pen.oval(rng.uniform(0.15, 0.85), rng.uniform(0.84, 0.92), 0.13, 0.05, (250, 252, 255), line=False)
    pen.oval(rng.uniform(0.0, 1), 0.2, 0.8, 0.3, (110, 190, 96), line=False)
    pen.box(0, 0, 1, 0.34, (92, 176, 76), line=False)
    for _ in range(10):
        x, y = rng.random(), rng.uniform(0.02, 0.28)
        pen.poly([(x - 0.015, y), (x + 0.015, y), (x, y + 0.06)], (62, 140, 56), line=False)


def _ball(pen: Pen) -> None:
    pen.oval(0, 0.14, 0.14, 0.14, (222, 52, 60))
    pen.poly([(-0.13, 0.1), (0.13, 0.1), (0.13, 0.18), (-0.13, 0.18)], (250, 250, 250), line=False)


def _tree(pen: Pen) -> None:
    pen.box(-0.05, 0, 0.05, 0.4, (122, 82, 48))
    for x, y in ((-0.1, 0.46), (0.1, 0.46), (0, 0.6)):
        pen.oval(x, y, 0.14, 0.14, (52, 140, 66))


def _flower(pen: Pen) -> None:
    pen.limb([(0, 0), (0, 0.26)], 0.035, (60, 150, 60))
    for turn in range(5):
        a = 2 * math.pi * turn / 5
        pen.oval(0.09 * math.cos(a), 0.33 + 0.09 * math.sin(a), 0.065, 0.065, (240, 90, 170))
    pen.oval(0, 0.33, 0.055, 0.055, (252, 216, 70))


# Each fills the image; its pen has the whole image as its unit, origin at the lower left.
BACKGROUNDS: dict[str, Callable[[Pen, random.Random], None]] = {
    "plain": _plain,
    "beach": _beach,
    "snow": _snow,
    "jungle": _jungle,
    "street": _street,
    "pool": _pool,
    "grass": _grass,
}
NEIGHBOURS: dict[str, Callable[[Pen], None]] = {"ball": _ball, "tree": _tree, "flower": _flower}

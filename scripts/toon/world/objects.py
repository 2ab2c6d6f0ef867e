"""How toon's objects are drawn: their shapes, and how large each is."""

from scripts.toon.world.pen import DARK, Pen, shade
from scripts.toon.world.world import Look


def _spots(pen: Pen, look: Look, x: float, y: float, rx: float, ry: float) -> None:
    """The marking of an object, on the area round (x, y)."""
    if look.marking == "spots":
        for dx, dy in ((-0.55, 0.4), (0.5, 0.45), (-0.1, -0.5), (0.6, -0.4)):
            pen.oval(x + dx * rx, y + dy * ry, 0.05, 0.05, look.mark, line=False)
    elif look.marking == "stripes":
        for dy in (0.5, 0, -0.5):
            pen.limb([(x - rx * 0.8, y + dy * ry), (x + rx * 0.8, y + dy * ry)], 0.03, look.mark)
    elif look.marking == "patch":
        pen.oval(x, y, rx * 0.45, ry * 0.5, look.mark, line=False)
    elif look.marking == "socks":
        pen.box(x - rx * 0.8, y - ry * 0.95, x + rx * 0.8, y - ry * 0.6, look.mark, line=False)


def _backpack(pen: Pen, look: Look) -> None:
    for side in (-1, 1):
        pen.limb([(side * 0.3, 0.62), (side * 0.38, 0.4), (side * 0.31, 0.12)], 0.06, look.ear)
    pen.ring(0, 0.84, 0.11, 0.11, look.ear, 0.05)
    pen.limb([(-0.16, 0.62), (-0.16, 0.18)], 0.3, look.body)
    pen.limb([(0.16, 0.62), (0.16, 0.18)], 0.3, look.body)
    pen.box(-0.17, 0.03, 0.17, 0.77, look.body, line=False)
    _spots(pen, look, 0, 0.6, 0.26, 0.12)
    pen.limb([(-0.26, 0.47), (0.26, 0.47)], 0.035, look.ear)
    pen.box(-0.21, 0.07, 0.21, 0.36, look.belly)
    pen.box(-0.06, 0.27, 0.06, 0.36, look.ear)


def _teapot(pen: Pen, look: Look) -> None:
    pen.ring(-0.38, 0.34, 0.17, 0.19, look.ear, 0.07)
    pen.poly([(0.22, 0.18), (0.56, 0.56), (0.47, 0.6), (0.2, 0.42)], look.ear)
    pen.oval(0, 0.32, 0.38, 0.31, look.body)
    _spots(pen, look, 0, 0.3, 0.28, 0.22)
    pen.box(-0.18, 0.0, 0.18, 0.05, look.belly)
    pen.oval(0, 0.61, 0.2, 0.07, look.belly)
    pen.oval(0, 0.71, 0.06, 0.06, look.ear)


def _car(pen: Pen, look: Look) -> None:
    pen.poly([(-0.36, 0.36), (-0.26, 0.62), (0.18, 0.62), (0.34, 0.36)], look.body)
    pen.poly([(-0.28, 0.38), (-0.21, 0.57), (-0.05, 0.57), (-0.05, 0.38)], (206, 232, 246))
    pen.poly([(0.01, 0.38), (0.01, 0.57), (0.15, 0.57), (0.26, 0.38)], (206, 232, 246))
    pen.poly([(-0.58, 0.12), (-0.58, 0.32), (-0.5, 0.38), (0.5, 0.38), (0.6, 0.28), (0.6, 0.12)], look.body)
    _spots(pen, look, 0, 0.27, 0.42, 0.1)
    pen.box(-0.58, 0.14, 0.6, 0.18, look.belly, line=False)
    pen.oval(0.54, 0.28, 0.045, 0.045, (255, 240, 150))
    for x in (-0.32, 0.34):
        pen.oval(x, 0.12, 0.13, 0.13, DARK)
        pen.oval(x, 0.12, 0.065, 0.065, look.ear, line=False)


def draw_barn(pen: Pen, look: Look) -> None:
    pen.box(-0.5, 0, 0.5, 0.56, look.body)
    _spots(pen, look, 0, 0.46, 0.42, 0.08)
    pen.poly([(-0.58, 0.54), (-0.44, 0.8), (0, 0.98), (0.44, 0.8), (0.58, 0.54)], look.ear)
    pen.box(-0.1, 0.62, 0.1, 0.8, look.belly)
    pen.box(-0.24, 0, 0.24, 0.38, look.belly)
    for a, b in (((-0.24, 0.0), (0.24, 0.38)), ((-0.24, 0.38), (0.24, 0.0))):
        pen.draw.line([pen.at(*a), pen.at(*b)], shade(look.body, 0.8), pen.width(0.03))


OBJECT_SHAPES = {
    "backpack": (_backpack, 0.95),
    "teapot": (_teapot, 0.95),
    "car": (_car, 0.85),
    "barn": (draw_barn, 0.9),
}

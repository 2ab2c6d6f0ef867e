"""Draw a toon `Scene` with Pillow: `render(scene, size)` gives an RGB picture of size x size pixels."""

import math
import random

from PIL import Image, ImageDraw

from scripts.toon.world import RGB, Look, Scene

SUPERSAMPLE = 4
DARK: RGB = (38, 34, 40)


def shade(rgb: RGB, factor: float) -> RGB:
    return tuple(max(0, min(255, int(c * factor))) for c in rgb)


class Pen:
    """Draws in local units: x to the right of the origin, y up, times `scale` of the picture's side."""

    def __init__(
        self, draw: ImageDraw.ImageDraw, side: int, x: float, y: float, scale: float, mirror: bool = False
    ):
        self.draw, self.side, self.x, self.y, self.scale = draw, side, x, y, scale
        self.sign = -1 if mirror else 1

    def at(self, x: float, y: float) -> tuple[float, float]:
        return (self.x + self.sign * x * self.scale) * self.side, (1 - self.y - y * self.scale) * self.side

    def width(self, w: float) -> int:
        return max(1, round(w * self.scale * self.side))

    def oval(self, x: float, y: float, rx: float, ry: float, fill: RGB, line: bool = True) -> None:
        (x0, y0), (x1, y1) = self.at(x - rx, y + ry), self.at(x + rx, y - ry)
        box = (min(x0, x1), y0, max(x0, x1), y1)
        self.draw.ellipse(box, fill, shade(fill, 0.55) if line else None, self.width(0.018) if line else 0)

    def ring(
        self, x: float, y: float, rx: float, ry: float, colour: RGB, width: float, start=0, end=360
    ) -> None:
        (x0, y0), (x1, y1) = self.at(x - rx, y + ry), self.at(x + rx, y - ry)
        self.draw.arc((min(x0, x1), y0, max(x0, x1), y1), start, end, colour, self.width(width))

    def poly(self, points: list[tuple[float, float]], fill: RGB, line: bool = True) -> None:
        xy = [self.at(*point) for point in points]
        self.draw.polygon(xy, fill, shade(fill, 0.55) if line else None, self.width(0.018) if line else 0)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: RGB, line: bool = True) -> None:
        self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill, line)

    def limb(self, points: list[tuple[float, float]], width: float, fill: RGB) -> None:
        """A thick line with round ends and a darker outline."""
        xy = [self.at(*point) for point in points]
        for w, colour in ((width + 0.03, shade(fill, 0.55)), (width, fill)):
            pixels, r = self.width(w), self.width(w) / 2
            self.draw.line(xy, colour, pixels, "curve")
            for px, py in (xy[0], xy[-1]):
                self.draw.ellipse((px - r, py - r, px + r, py + r), colour)


# ---------------------------------------------------------------- animals


def _ears(pen: Pen, look: Look, x: float, y: float, r: float) -> None:
    inner = look.belly
    for side in (-1, 1):
        if look.kind == "cat":
            pen.poly(
                [(x + side * r * a, y + r * b) for a, b in ((0.95, 0.25), (0.85, 1.35), (0.2, 0.85))],
                look.ear,
            )
        elif look.kind == "rabbit":
            pen.oval(x + side * r * 0.45, y + r * 1.5, r * 0.26, r * 0.85, look.ear)
            pen.oval(x + side * r * 0.45, y + r * 1.5, r * 0.12, r * 0.6, inner, line=False)
        elif look.kind == "pig":
            pen.poly(
                [(x + side * r * a, y + r * b) for a, b in ((1.05, 0.5), (0.75, 1.15), (0.3, 0.85))], look.ear
            )
        elif look.kind == "teddy bear":
            pen.oval(x + side * r * 0.8, y + r * 0.75, r * 0.4, r * 0.4, look.ear)
            pen.oval(x + side * r * 0.8, y + r * 0.75, r * 0.2, r * 0.2, inner, line=False)


def _face(pen: Pen, look: Look, x: float, y: float, r: float) -> None:
    if look.marking == "patch":
        pen.oval(x + r * 0.42, y + r * 0.2, r * 0.38, r * 0.42, look.mark, line=False)
    if look.marking == "stripes":
        for dx in (-0.22, 0, 0.22):
            pen.limb([(x + dx * r, y + r * 0.6), (x + dx * r, y + r * 0.85)], r * 0.06, look.mark)
    for side in (-1, 1):
        if look.kind == "teddy bear":
            pen.oval(x + side * r * 0.38, y + r * 0.18, r * 0.14, r * 0.14, DARK, line=False)
        else:
            pen.oval(x + side * r * 0.4, y + r * 0.18, r * 0.2, r * 0.22, (250, 250, 248))
            pen.oval(x + side * r * 0.38, y + r * 0.16, r * 0.13, r * 0.15, look.eye, line=False)
    if look.kind == "pig":
        pen.oval(x, y - r * 0.32, r * 0.42, r * 0.3, shade(look.belly, 0.85))
        for side in (-1, 1):
            pen.oval(x + side * r * 0.16, y - r * 0.32, r * 0.08, r * 0.13, DARK, line=False)
        return
    pen.oval(x, y - r * 0.42, r * 0.46, r * 0.36, look.belly, line=False)
    pen.oval(x, y - r * 0.22, r * (0.12 if look.kind == "cat" else 0.17), r * 0.12, DARK, line=False)
    pen.ring(x, y - r * 0.42, r * 0.2, r * 0.18, DARK, 0.016, 20, 160)
    if look.kind == "cat":
        for side in (-1, 1):
            for dy in (-0.3, -0.5):
                pen.draw.line(
                    [pen.at(x + side * r * 0.4, y + r * dy), pen.at(x + side * r * 1.2, y + r * (dy * 1.1))],
                    DARK,
                    pen.width(0.012),
                )


def _head(pen: Pen, look: Look, worn: str, x: float, y: float, r: float) -> None:
    if look.kind != "dog":
        _ears(pen, look, x, y, r)
    pen.oval(x, y, r * 1.05, r * 0.95, look.body)
    _face(pen, look, x, y, r)
    if look.kind == "dog":  # floppy, over the head
        for side in (-1, 1):
            pen.oval(x + side * r * 1.0, y - r * 0.02, r * 0.32, r * 0.72, look.ear)
    if worn == "headphones":
        pen.ring(x, y + r * 0.05, r * 1.18, r * 1.12, DARK, r * 0.22, 180, 360)
        for side in (-1, 1):
            pen.oval(x + side * r * 1.1, y, r * 0.3, r * 0.46, (214, 40, 60))
            pen.oval(x + side * r * 1.1, y, r * 0.13, r * 0.24, DARK, line=False)
    elif worn == "sunglasses":
        for side in (-1, 1):
            pen.oval(x + side * r * 0.45, y + r * 0.2, r * 0.4, r * 0.32, (22, 22, 28), line=False)
        pen.draw.line(
            [pen.at(x - r * 1.0, y + r * 0.32), pen.at(x + r * 1.0, y + r * 0.32)],
            (22, 22, 28),
            pen.width(0.03),
        )
    elif worn == "hat":
        pen.box(x - r * 0.62, y + r * 0.75, x + r * 0.62, y + r * 1.6, (44, 86, 190))
        pen.box(x - r * 0.62, y + r * 0.85, x + r * 0.62, y + r * 1.1, (250, 210, 60), line=False)
        pen.box(x - r * 1.05, y + r * 0.65, x + r * 1.05, y + r * 0.85, (44, 86, 190))


def _neck(pen: Pen, look: Look, worn: str, x: float, y: float, w: float) -> None:
    """Collar, or a scarf with a hanging end."""
    if worn == "scarf":
        green, pale = (30, 150, 90), (236, 240, 180)
        pen.limb([(x + w * 0.6, y), (x + w * 0.7, y - 0.25)], 0.12, green)
        pen.limb([(x + w * 0.45, y - 0.16), (x + w * 0.9, y - 0.16)], 0.03, pale)
        pen.limb([(x - w, y), (x + w, y)], 0.12, green)
        for dx in (-0.7, -0.1):
            pen.limb([(x + dx * w, y + 0.04), (x + dx * w, y - 0.04)], 0.035, pale)
    elif look.collar is not None:
        pen.limb([(x - w * 0.95, y), (x + w * 0.95, y)], 0.05, look.collar)
        pen.oval(x, y - 0.05, 0.035, 0.035, (250, 214, 70))


def _coat(pen: Pen, look: Look, x: float, y: float, rx: float, ry: float) -> None:
    """Body, belly and its marking."""
    pen.oval(x, y, rx, ry, look.body)
    pen.oval(x, y - ry * 0.12, rx * 0.62, ry * 0.66, look.belly, line=False)
    if look.marking == "spots":
        for dx, dy in ((-0.62, 0.35), (0.66, 0.1), (-0.6, -0.4), (0.45, -0.62)):
            pen.oval(x + dx * rx, y + dy * ry, 0.05, 0.05, look.mark, line=False)
    elif look.marking == "stripes":
        for dy in (0.3, -0.05, -0.4):
            pen.limb([(x - rx * 0.6, y + dy * ry), (x + rx * 0.6, y + dy * ry)], 0.025, look.mark)


def _front(pen: Pen, look: Look, scene: Scene) -> None:
    """Standing, waving or jumping, seen from the front."""
    foot = look.mark if look.marking == "socks" else look.body
    swing = math.sin(2 * math.pi * scene.phase)
    jumping, waving = scene.pose == "jumping", scene.pose == "waving"
    if look.kind == "cat":
        pen.limb([(0.14, 0.14), (0.3, 0.2), (0.36, 0.42)], 0.06, look.ear)
    for side in (-1, 1):
        x = side * (0.2 if jumping else 0.11)
        pen.limb([(side * 0.1, 0.18), (x, 0.06)], 0.1, look.body)
        pen.oval(x + side * 0.02, 0.045, 0.085, 0.055, foot)
    _coat(pen, look, 0, 0.31, 0.2, 0.23)
    for side in (-1, 1):
        raised = jumping or (waving and side == 1)
        hand = (side * 0.36, 0.66 + 0.05 * swing) if raised else (side * 0.23, 0.24)
        if waving and side == 1:
            hand = (0.38 + 0.07 * swing, 0.66)
        elbow = (side * 0.3, 0.46) if raised else (side * 0.24, 0.34)
        pen.limb([(side * 0.15, 0.43), elbow, hand], 0.085, look.body)
        pen.oval(*hand, 0.055, 0.055, foot)
    _neck(pen, look, scene.worn, 0, 0.455, 0.17)
    _head(pen, look, scene.worn, 0, 0.7, 0.245)


def _sitting(pen: Pen, look: Look, scene: Scene) -> None:
    """On its bottom, the soles of its feet towards us."""
    foot = look.mark if look.marking == "socks" else look.body
    _coat(pen, look, 0, 0.24, 0.24, 0.24)
    for side in (-1, 1):
        pen.oval(side * 0.25, 0.09, 0.12, 0.1, foot)
        pen.oval(side * 0.25, 0.09, 0.065, 0.055, look.belly, line=False)
        hand = (side * 0.34, 0.3) if look.kind == "teddy bear" else (side * 0.09, 0.16)
        pen.limb([(side * 0.17, 0.38), (side * 0.24, 0.3), hand], 0.08, look.body)
    if look.kind == "teddy bear":  # a stitched cross
        for a, b in (((-0.05, 0.15), (0.05, 0.25)), ((-0.05, 0.25), (0.05, 0.15))):
            pen.draw.line([pen.at(*a), pen.at(*b)], DARK, pen.width(0.02))
    _neck(pen, look, scene.worn, 0, 0.41, 0.18)
    _head(pen, look, scene.worn, 0, 0.66, 0.25)


def _running(pen: Pen, look: Look, scene: Scene) -> None:
    """From the side, head to us, legs in stride."""
    foot = look.mark if look.marking == "socks" else look.body
    angle = 2 * math.pi * scene.phase
    pen.limb([(-0.32, 0.38), (-0.48, 0.52)], 0.06, look.ear)
    for hip, offset in ((-0.24, 0.0), (-0.16, math.pi), (0.1, math.pi * 0.9), (0.18, -0.1 * math.pi)):
        stride = 0.16 * math.sin(angle + offset)
        lift = 0.06 * max(0.0, math.cos(angle + offset))
        pen.limb([(hip, 0.26), (hip + stride, 0.07 + lift)], 0.08, look.body)
        pen.oval(hip + stride + 0.02, 0.05 + lift, 0.065, 0.045, foot)
    _coat(pen, look, -0.05, 0.35, 0.32, 0.17)
    _neck(pen, look, scene.worn, 0.22, 0.4, 0.14)
    _head(pen, look, scene.worn, 0.24, 0.62, 0.225)


# ---------------------------------------------------------------- objects


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


def _barn(pen: Pen, look: Look) -> None:
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
    "barn": (_barn, 0.9),
}


# ---------------------------------------------------------------- places and neighbours


def _pastel(rng: random.Random, low: int = 196) -> RGB:
    return tuple(rng.randint(low, 240) for _ in range(3))


def _background(pen: Pen, place: str, rng: random.Random) -> None:
    """Fill the picture; `pen` has the whole picture as its unit, origin at the lower left."""
    if place == "plain":
        wall = _pastel(rng)
        pen.box(0, 0, 1, 1, wall, line=False)
        pen.box(0, 0, 1, rng.uniform(0.16, 0.26), shade(wall, 0.84), line=False)
    elif place == "beach":
        pen.box(0, 0, 1, 1, (150, 214, 246), line=False)
        pen.oval(rng.choice((0.13, 0.87)), rng.uniform(0.84, 0.9), 0.09, 0.09, (255, 226, 90), line=False)
        horizon = rng.uniform(0.44, 0.52)
        pen.box(0, 0, 1, horizon, (40, 136, 200), line=False)
        pen.box(0, 0, 1, horizon - 0.16, (248, 222, 150), line=False)
    elif place == "snow":
        pen.box(0, 0, 1, 1, (188, 206, 232), line=False)
        for x in (rng.uniform(0.02, 0.14), rng.uniform(0.86, 0.98)):
            for y, w in ((0.36, 0.14), (0.48, 0.11), (0.6, 0.08)):
                pen.poly([(x - w, y), (x + w, y), (x, y + 0.2)], (70, 120, 112), line=False)
        pen.oval(0.5, 0.1, 0.9, 0.28, (248, 250, 254), line=False)
        for _ in range(12):
            pen.oval(rng.random(), rng.uniform(0.5, 1), 0.016, 0.016, (255, 255, 255), line=False)
    elif place == "jungle":
        pen.box(0, 0, 1, 1, (32, 84, 48), line=False)
        for _ in range(16):
            green = rng.choice(((24, 104, 52), (54, 132, 60), (20, 66, 40), (86, 150, 62)))
            pen.oval(
                rng.random(),
                rng.uniform(0.25, 1),
                rng.uniform(0.08, 0.16),
                rng.uniform(0.04, 0.08),
                green,
                False,
            )
        pen.box(0, 0, 1, 0.16, (92, 62, 38), line=False)
    elif place == "street":
        pen.box(0, 0, 1, 1, (58, 52, 104), line=False)
        x = -0.02
        while x < 1:
            w, top = rng.uniform(0.14, 0.22), rng.uniform(0.55, 0.95)
            pen.box(
                x, 0.2, x + w, top, rng.choice(((84, 92, 130), (100, 84, 118), (72, 78, 110))), line=False
            )
            for wx in (0.25, 0.65):
                for row in range(1, 8):
                    wy = 0.2 + row * 0.09
                    if wy + 0.04 < top and rng.random() < 0.7:
                        pen.box(x + w * wx, wy, x + w * wx + 0.035, wy + 0.04, (252, 222, 110), line=False)
            x += w + 0.01
        pen.box(0, 0, 1, 0.22, (74, 74, 82), line=False)
        for x in (0.08, 0.42, 0.76):
            pen.box(x, 0.09, x + 0.16, 0.12, (240, 240, 240), line=False)
    elif place == "pool":
        pen.box(0, 0, 1, 1, (236, 240, 238), line=False)
        for x in range(1, 6):
            pen.box(x / 6 - 0.006, 0.6, x / 6 + 0.006, 1, (206, 218, 220), line=False)
        pen.box(0, 0.78, 1, 0.792, (206, 218, 220), line=False)
        pen.box(0, 0, 1, 0.62, (60, 190, 214), line=False)
        pen.box(0, 0.58, 1, 0.63, (250, 250, 250), line=False)
        for _ in range(9):
            pen.ring(rng.random(), rng.uniform(0.05, 0.5), 0.07, 0.025, (220, 246, 250), 0.016, 0, 180)
    elif place == "grass":
        pen.box(0, 0, 1, 1, (142, 200, 250), line=False)
        pen.oval(rng.uniform(0.15, 0.85), rng.uniform(0.84, 0.92), 0.13, 0.05, (250, 252, 255), line=False)
        pen.oval(rng.uniform(0.0, 1), 0.2, 0.8, 0.3, (110, 190, 96), line=False)
        pen.box(0, 0, 1, 0.34, (92, 176, 76), line=False)
        for _ in range(10):
            x, y = rng.random(), rng.uniform(0.02, 0.28)
            pen.poly([(x - 0.015, y), (x + 0.015, y), (x, y + 0.06)], (62, 140, 56), line=False)
    else:
        raise ValueError(f"unknown place {place!r}")


def _neighbour(pen: Pen, name: str) -> None:
    if name == "ball":
        pen.oval(0, 0.14, 0.14, 0.14, (222, 52, 60))
        pen.poly([(-0.13, 0.1), (0.13, 0.1), (0.13, 0.18), (-0.13, 0.18)], (250, 250, 250), line=False)
    elif name == "tree":
        pen.box(-0.05, 0, 0.05, 0.4, (122, 82, 48))
        for x, y in ((-0.1, 0.46), (0.1, 0.46), (0, 0.6)):
            pen.oval(x, y, 0.14, 0.14, (52, 140, 66))
    elif name == "flower":
        pen.limb([(0, 0), (0, 0.26)], 0.035, (60, 150, 60))
        for turn in range(5):
            a = 2 * math.pi * turn / 5
            pen.oval(0.09 * math.cos(a), 0.33 + 0.09 * math.sin(a), 0.065, 0.065, (240, 90, 170))
        pen.oval(0, 0.33, 0.055, 0.055, (252, 216, 70))


def render(scene: Scene, size: int = 64) -> Image.Image:
    """Draw the scene at `size` x `size` pixels, supersampled four times."""
    side = size * SUPERSAMPLE
    picture = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(picture)
    whole = Pen(draw, side, 0, 0, 1)
    _background(whole, scene.place, random.Random(scene.seed))
    look = scene.subject
    if scene.barn is not None:
        _barn(Pen(draw, side, 0.5, scene.ground + 0.04, 0.76), scene.barn)
    elif scene.neighbour != "nothing":
        _neighbour(Pen(draw, side, 0.82, scene.ground, 1.0), scene.neighbour)
    if look.kind in OBJECT_SHAPES:
        shape, factor = OBJECT_SHAPES[look.kind]
        shape(Pen(draw, side, scene.x, scene.ground, scene.scale * factor, scene.faces_left), look)
    else:
        lift = 0.1 + 0.06 * math.sin(2 * math.pi * scene.phase) if scene.pose == "jumping" else 0.0
        if lift:
            shadow = 0.16 - 0.3 * (lift - 0.1)
            floor = picture.getpixel((int(scene.x * side), int((1 - scene.ground) * side)))
            whole.oval(scene.x, scene.ground, shadow, 0.03, shade(floor, 0.6), line=False)
        pen = Pen(draw, side, scene.x, scene.ground + lift, scene.scale, scene.faces_left)
        if look.kind == "teddy bear" or scene.pose == "sitting":
            _sitting(pen, look, scene)
        elif scene.pose == "running":
            _running(pen, look, scene)
        else:
            _front(pen, look, scene)
    return picture.reduce(SUPERSAMPLE)

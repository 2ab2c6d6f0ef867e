"""How toon's animals and its teddy bear are drawn: coats, heads, what they wear, and their poses."""

import math

from scripts.toon.world.pen import DARK, Pen, shade
from scripts.toon.world.world import Look, Scene


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


def draw_animal(pen: Pen, look: Look, scene: Scene) -> None:
    if look.kind == "teddy bear" or scene.pose == "sitting":
        _sitting(pen, look, scene)
    elif scene.pose == "running":
        _running(pen, look, scene)
    else:
        _front(pen, look, scene)

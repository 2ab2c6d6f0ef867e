"""The toon world: what a scene holds, and how scenes are drawn at random.

A `Scene` is a complete description of one image. `render.py` draws it, `captions.py` puts it into words and
labels. Nothing here depends on torch.
"""

import random
from dataclasses import dataclass, replace

RGB = tuple[int, int, int]

ANIMALS = ("dog", "cat", "rabbit", "pig", "teddy bear")
OBJECTS = ("backpack", "teapot", "car", "barn")
KINDS = ANIMALS + OBJECTS
PLACES = ("plain", "beach", "snow", "jungle", "street", "pool", "grass")
WORN = ("nothing", "headphones", "sunglasses", "hat", "scarf")
NEIGHBOURS = ("nothing", "ball", "tree", "flower", "barn")
POSES = ("standing", "sitting", "running", "jumping", "waving")
MARKINGS = ("none", "spots", "stripes", "patch", "socks")
MARKING_WORDS = {"spots": "{} spots", "stripes": "{} stripes", "patch": "a {} patch", "socks": "{} socks"}
RARE_WORDS = ("sks", "ktn", "pll", "ucd", "olis", "mth", "ohwx", "zwx")
COLOURS: dict[str, RGB] = {
    "white": (240, 238, 232),
    "black": (52, 48, 54),
    "grey": (142, 144, 152),
    "brown": (128, 80, 44),
    "orange": (238, 138, 44),
    "yellow": (244, 208, 62),
    "pink": (242, 150, 180),
    "red": (206, 48, 48),
    "blue": (62, 106, 214),
    "green": (76, 164, 82),
    "purple": (136, 78, 182),
}
BELLIES: dict[str, RGB] = {"white": (248, 240, 226), "pink": (250, 206, 210), "black": (70, 60, 60)}
COLLARS = ("red", "blue", "yellow")
EYE: RGB = (40, 30, 30)
SCALES = (0.66, 0.72, 0.78)  # of a subject alone; captions may call the outer two very small and zoomed in
PHASES = 8  # moments of a movement
DRAWINGS = 8  # of each place
PLACE_WORDS = {
    "beach": ("on the beach",),
    "snow": ("in the snow",),
    "jungle": ("in the jungle",),
    "street": ("on the street", "in the city"),
    "pool": ("in the pool",),
    "grass": ("on the grass",),
}
WORN_WORDS = {"headphones": "headphones", "sunglasses": "sunglasses", "hat": "a hat", "scarf": "a scarf"}

# What plain images of an individual never show, so that prompts ask for it: one thing changed, two at once.
ONE_CHANGE: tuple[dict[str, str], ...] = (
    *({"place": place} for place in PLACES[1:]),
    *({"worn": worn} for worn in WORN[1:]),
    *({"neighbour": neighbour} for neighbour in NEIGHBOURS[1:]),
)
TWO_CHANGES: tuple[dict[str, str], ...] = (
    {"worn": "headphones", "place": "beach"},
    {"worn": "sunglasses", "place": "snow"},
    {"worn": "hat", "place": "street"},
    {"worn": "scarf", "place": "grass"},
    {"neighbour": "ball", "place": "grass"},
    {"neighbour": "tree", "place": "snow"},
)

# Triples that no training scene holds together, though it holds each two of them: they test whether the model
# composes. (Of a pair that it never sees it would rightly learn that the two exclude each other.)
HELD_OUT = frozenset(
    frozenset(triple)
    for triple in (
        ("dog", "headphones", "beach"),
        ("dog", "scarf", "snow"),
        ("cat", "hat", "snow"),
        ("cat", "sunglasses", "street"),
        ("rabbit", "scarf", "pool"),
        ("rabbit", "headphones", "jungle"),
        ("pig", "sunglasses", "beach"),
        ("pig", "hat", "grass"),
        ("teddy bear", "headphones", "street"),
        ("teddy bear", "scarf", "jungle"),
        ("car", "tree", "snow"),
        ("teapot", "ball", "grass"),
        ("backpack", "flower", "pool"),
    )
)


@dataclass(frozen=True)
class Look:
    """Everything that makes an individual: two individuals of a kind differ in their look alone."""

    kind: str
    colour: str | None  # the name of the body's colour; None in a scene that is only put into words
    body: RGB
    belly: RGB  # belly and muzzle; trim of an object
    ear: RGB  # ears; lid, roof or wheels of an object
    eye: RGB
    collar: RGB | None
    marking: str
    mark: RGB


@dataclass(frozen=True)
class Scene:
    """One image. Lengths are fractions of its side; `phase` in [0, 1) is the moment of a movement."""

    subject: Look
    place: str = "plain"
    worn: str = "nothing"
    pose: str = "standing"
    neighbour: str = "nothing"
    barn: Look | None = None  # what the subject stands before when the neighbour is a barn
    x: float = 0.5  # centre of the subject
    ground: float = 0.07  # its feet, above the lower edge
    scale: float = 0.72  # its height without ears and hat
    faces_left: bool = False
    phase: float = 0.0
    seed: int = 0  # the details of the background


def darker(colour: RGB) -> RGB:
    """A body's colour in shade, as ears and marks may have it."""
    return tuple(int(c * 0.6) for c in colour)


def sample_look(rng: random.Random, kind: str) -> Look:
    """A random individual of a kind, one of more than 2,000: every part has its colour from a small palette.
    Captions name few of them; the rest is for personalisation to learn."""
    colour = rng.choice(list(COLOURS))
    body = COLOURS[colour]
    mark = darker(body) if rng.random() < 0.5 else COLOURS[rng.choice(list(COLOURS))]
    return Look(
        kind=kind,
        colour=colour,
        body=body,
        belly=rng.choice(list(BELLIES.values())),
        ear=darker(body) if rng.random() < 0.5 else mark,
        eye=EYE,
        collar=COLOURS[rng.choice(COLLARS)] if rng.random() < 0.4 else None,
        marking=rng.choice(MARKINGS),
        mark=mark,
    )


def with_free_parts(look: Look, rng: random.Random) -> Look:
    """The same body with every other part drawn anew, each colour as often as the next and independent of the
    others. In `sample_look` three ears in four are the body's colour in shade, and most marks are the ears'
    colour: from such images a model does not learn to draw "purple ears"."""
    colours = [*COLOURS.values(), darker(look.body)]
    return replace(
        look,
        belly=rng.choice(list(BELLIES.values())),
        ear=rng.choice(colours),
        collar=COLOURS[rng.choice(COLLARS)] if rng.random() < 0.6 else None,
        marking=rng.choice(MARKINGS),
        mark=rng.choice(colours),
    )


def repainted(look: Look, part: str) -> Look:
    """The same look with one part in a colour that is in no palette, or a collar or marking taken away; for
    finding where the part is in an image. part: "ear", "belly", "collar" or "marking"."""
    strange: RGB = (0, 255, 255)
    if part == "marking":
        return replace(look, marking="none")
    return replace(look, **{part: None if part == "collar" else strange})


def place_subject(rng: random.Random, scene: Scene) -> Scene:
    """Where the subject stands and how large it is: large, but beside or before a neighbour smaller."""
    beside = scene.neighbour not in ("nothing", "barn")
    scale = {"nothing": rng.choice(SCALES), "barn": 0.52}.get(scene.neighbour, 0.6)
    return replace(
        scene,
        scale=scale * (0.85 if scene.pose == "jumping" else 1),
        x=0.34 if beside else rng.choice((0.45, 0.5, 0.55)),
        ground=0.08,
        faces_left=False if beside else rng.random() < 0.5,
        phase=rng.randrange(PHASES) / PHASES,
        seed=rng.randrange(DRAWINGS),
    )


def without_subject(scene: Scene) -> Scene:
    """The same scene, its subject out of the image."""
    return replace(scene, x=9.0, pose="standing")


def is_held_out(scene: Scene) -> bool:
    """Whether the scene holds a triple that training never sees."""
    words = {scene.subject.kind, scene.place, scene.worn, scene.neighbour}
    return any(triple <= words for triple in HELD_OUT)


def _sample_any(rng: random.Random) -> Scene:
    kind = rng.choice(ANIMALS * 2 + OBJECTS)
    animal = kind in ANIMALS
    neighbour = rng.choices(NEIGHBOURS, (60, 10, 8, 8, 14 if kind != "barn" else 0))[0]
    scene = Scene(
        subject=sample_look(rng, kind),
        place=rng.choices(PLACES, (28, 12, 12, 12, 12, 12, 12))[0],
        worn=rng.choices(WORN, (40, 15, 15, 15, 15))[0] if animal else "nothing",
        pose=rng.choices(POSES, (60, 10, 10, 10, 10))[0] if animal and kind != "teddy bear" else "standing",
        neighbour=neighbour,
        barn=sample_look(rng, "barn") if neighbour == "barn" else None,
    )
    return place_subject(rng, scene)


def sample_scene(rng: random.Random, held_out: bool = False) -> Scene:
    """A random scene: one that training may see, or one with a held-out triple."""
    while True:
        scene = _sample_any(rng)
        if is_held_out(scene) == held_out:
            return scene


def twin(scene: Scene, rng: random.Random) -> Scene:
    """The same scene with one thing changed that captions name: class, colour, place, worn thing or pose."""
    look, animal = scene.subject, scene.subject.kind in ANIMALS
    poses = animal and look.kind != "teddy bear"
    thing = rng.choice(["class", "colour", "place"] + ["worn"] * animal + ["pose"] * poses)
    others = {"place": PLACES, "worn": WORN, "pose": POSES}
    if thing in others:
        choices = [value for value in others[thing] if value != getattr(scene, thing)]
        return replace(scene, **{thing: rng.choice(choices)})
    if thing == "colour":
        while (other := sample_look(rng, look.kind)).colour == look.colour:
            pass
        return replace(scene, subject=other)
    posed = scene.pose != "standing"
    kinds = [kind for kind in KINDS if (kind in ANIMALS) == animal and kind not in (look.kind, "barn")]
    kinds = [kind for kind in kinds if not (posed and kind == "teddy bear")]
    return replace(scene, subject=replace(look, kind=rng.choice(kinds)))

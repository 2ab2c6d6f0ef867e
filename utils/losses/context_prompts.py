"""Prompts that put a concept into rich contexts, for masked language modelling; composed of word lists.

A prompt holds "{}" where the concept goes ("<new1> dog"). Two kinds of concepts, pets and things; five types:
backgrounds, relations, worn (of things: what decorates them), interactions, styles. A draw takes the type
first, each alike, for most prompts are relations (Kim et al. 2024, arXiv:2410.10058). The lists are this
repository's own.
"""

import random
import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import permutations, product


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


KINDS = ("pets", "things")
TYPES = ("backgrounds", "relations", "worn", "interactions", "styles")
HEADS = ("", *_words("a photo of, photo of, a picture of, a close photo of, a good photo of, an image of"))

# The last word of a class that can wear and do something; any other class is a thing.
LIVING = frozenset(
    _words(
        "dog, puppy, cat, kitten, rabbit, bunny, pig, bear, hamster, mouse, bird, parrot, owl, duck, "
        "chicken, goose, horse, pony, cow, sheep, goat, fox, wolf, lion, tiger, monkey, panda, penguin, "
        "turtle, frog, lizard, squirrel, hedgehog, deer, elephant, animal, pet, corgi, poodle, plushie, "
        "person, man, woman, boy, girl, child, baby"
    )
)
EXAMPLES = {
    "pets": _words("dog, cat, rabbit, pig, teddy bear, bird, horse, fox, bear, duck"),
    "things": _words("backpack, teapot, car, barn, toy, vase, chair, clock, boat, shoe"),
}

COLOURS = ("", *_words("white, black, grey, brown, orange, yellow, pink, red, blue, green, purple"))
PLACES = _words(
    "on the beach, in the snow, in the jungle, on the street, in the city, in the pool, on the grass, in "
    "the garden, in the forest, in a meadow, in the desert, in a park, in a field, on a farm, at the zoo, "
    "in a cave, on a hill, by a river, by the lake, at the sea, on a bridge, on a boat, on a roof, in a "
    "tent, in a barn, in the kitchen, in a bedroom, in an office, in a library, in a museum, in a cafe, in "
    "a shop, in a market, in a school, in a church, in a castle, on a sofa, on a bed, on a rug, on the "
    "floor, on a table, on a bench, on the stairs, in the mud, on the ice, on the sand, in a puddle, in the "
    "woods, under water, in space, on the moon, at a station, on a train, on a plane, in a garage, in a "
    "yard"
)
OPEN_AIR = PLACES[:7] + _words("in the garden, in the forest, in a meadow, in a park, in a field, on a hill")
MOMENTS = (
    "",
    *_words("at night, at noon, at dawn, at sunset, in the rain, in the fog, in the sun, in winter"),
)
RELATIONS = _words(
    "next to, in front of, behind, near, beside, under, on top of, far from, close to, to the left of, to "
    "the right of, between a wall and"
)
OBJECTS = _words(
    "ball, tree, flower, barn, car, teapot, backpack, hat, box, chair, table, lamp, book, cup, bowl, plate, "
    "bed, sofa, door, window, fence, gate, wall, house, tent, tower, bridge, boat, ship, train, bus, truck, "
    "bike, wagon, rock, log, bush, fern, palm, pond, well, bench, swing, slide, kite, drum, piano, guitar, "
    "clock, vase, pot, pan, kettle, basket, bucket, bag, pillow, rug, ladder, wheel, barrel, crate, statue, "
    "sign, lantern, candle, mirror, fan, phone, camera, laptop, toy, doll, robot, balloon, cake, melon, "
    "apple"
)
GARMENTS = _words(
    "headphones, sunglasses, hat, scarf, cap, coat, jacket, shirt, sweater, vest, dress, skirt, tie, bow "
    "tie, belt, cape, cloak, hood, helmet, crown, wig, mask, boots, shoes, socks, mittens, collar, bell, "
    "bandana, necklace, ribbon, flower crown, raincoat, apron, goggles, glasses, headband, backpack, life "
    "vest, medal"
)
DEEDS = _words(
    "playing with, looking at, running to, jumping over, chasing, sniffing, pulling, pushing, carrying, "
    "sleeping beside, hiding behind, sitting on, standing on, dancing around, digging beside, watching"
)
ORNAMENTS = _words(
    "ribbon, bow, flower, sticker, star, bell, scarf, hat, feather, tag, rope, chain, badge, leaf, button, "
    "stripe, patch, pearl, flag, heart"
)
DECORATED = _words("with, decorated with, tied up with, wearing, adorned with")
PEOPLE = _words(
    "girl, boy, man, woman, child, farmer, cook, dancer, doctor, student, teacher, singer, pilot, sailor, "
    "painter, clown, king, queen, robot, dog, cat, monkey"
)
USES = _words(
    "holding, looking at, carrying, painting, cleaning, pushing, hiding, selling, buying, drawing, "
    "touching, pointing at, standing next to, sitting beside, walking past, dancing around"
)
MEDIA = _words(
    "painting, drawing, sketch, cartoon, mosaic, poster, statue, sculpture, collage, comic, doodle, print, "
    "engraving, etching, mural, fresco, stamp, logo, icon, tattoo, toy, plush toy, wooden toy, paper model, "
    "clay figure, pixel image, oil painting, ink drawing, chalk drawing, pencil sketch, wood carving, glass "
    "window, sand sculpture, ice sculpture, postcard, wall painting, felt picture, shadow play"
)
MANNERS = (
    "",
    *_words(
        "in black and white, in red and blue, in pale colours, in bright colours, on old paper, on a wall, "
        "in a frame, with thick lines, with soft light"
    ),
)


def _a(noun: str, colour: str = "") -> str:
    """'a red hat', 'an orange hat', 'red boots'. Of the lists' words in s, bus and dress are singular."""
    plural = noun.endswith("s") and noun not in ("bus", "dress")
    text = f"{colour} {noun}".strip()
    return text if plural else f"{'an' if re.match('[aeio]', text) else 'a'} {text}"


def _coloured(nouns: Sequence[str]) -> list[str]:
    return [_a(noun, colour) for noun, colour in product(nouns, COLOURS)]


def _relations() -> Iterator[str]:
    for relation in RELATIONS:
        yield from (f"a {{}} {relation} {thing}" for thing in _coloured(OBJECTS))
        yield from (f"a {{}} {relation} {_a(noun)} {place}" for noun, place in product(OBJECTS, PLACES[:25]))


def _worn(kind: str) -> Iterator[str]:
    if kind == "pets":
        yield from (f"a {{}} wearing {thing}" for thing in _coloured(GARMENTS))
        yield from (f"a {{}} wearing {_a(one)} and {_a(two)}" for one, two in permutations(GARMENTS, 2))
        yield from (f"a {{}} wearing {_a(noun)} {place}" for noun, place in product(GARMENTS, PLACES))
    else:
        for verb in DECORATED:
            yield from (f"a {{}} {verb} {thing}" for thing in _coloured(ORNAMENTS))
            yield from (
                f"a {{}} {verb} {_a(noun)} {place}" for noun, place in product(ORNAMENTS, PLACES[:25])
            )


def _interactions(kind: str) -> Iterator[str]:
    if kind == "pets":
        for deed, noun in product(DEEDS, OBJECTS):
            yield f"a {{}} {deed} {_a(noun)}"
            yield from (f"a {{}} {deed} {_a(noun)} {place}" for place in OPEN_AIR[:4])
    else:
        for who, use in product(PEOPLE, USES):
            yield f"{_a(who)} {use} a {{}}"
            yield from (f"{_a(who)} {use} a {{}} {place}" for place in OPEN_AIR)


def _prompts(kind: str, name: str) -> Iterator[str]:
    if name == "backgrounds":
        return (f"a {{}} {place} {moment}".strip() for place, moment in product(PLACES, MOMENTS))
    if name == "styles":
        return (f"{_a(medium)} of a {{}} {manner}".strip() for medium, manner in product(MEDIA, MANNERS))
    if name == "relations":
        return _relations()
    return _worn(kind) if name == "worn" else _interactions(kind)


@cache
def prompts_of(kind: str, name: str) -> tuple[str, ...]:
    """All prompts of a kind (one of KINDS) and a type (one of TYPES), each once, without a head."""
    assert kind in KINDS and name in TYPES, (kind, name)
    return tuple(_prompts(kind, name))


def kind_of(class_word: str) -> str:
    """'dog', 'teddy bear' -> 'pets'; 'backpack' -> 'things'."""
    return "pets" if class_word.split()[-1].lower() in LIVING else "things"


def draw_parts(kind: str, rng: random.Random) -> tuple[str, str]:
    """A head and a prompt with "{}" for the concept: the type uniformly, then the prompt, then its head."""
    name = rng.choice(TYPES)
    prompt = rng.choice(prompts_of(kind, name))
    return "" if name == "styles" else rng.choice(HEADS), prompt


def draw_prompt(kind: str, rng: random.Random) -> str:
    """Both in one, "a photo of a {} on the beach"."""
    return " ".join(draw_parts(kind, rng)).strip()

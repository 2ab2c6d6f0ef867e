"""Captions: of all sorts, which a merge of concepts should leave as they are, or of a concept."""

from collections.abc import Sequence

KINDS = (
    "dog cat horse bird fish barn house castle bridge boat car train bicycle chair table lamp cup vase bag "
    "shoe clock flower tree woman man child robot guitar cake teddy-bear"
).split()
LOOKS = "old small red blue wooden shiny striped sleepy huge green white golden tiny dark happy".split()
PLACES = (
    "on the beach",
    "in the snow",
    "in a forest",
    "on a street at night",
    "next to a river",
    "in front of a mountain",
    "on a kitchen floor",
    "under a cloudy sky",
    "in a crowded market",
    "at sunset",
    "in an empty room",
    "beside a tall fence",
    "on top of a hill",
)
STYLES = (
    "a photo of a",
    "a painting of a",
    "a close view of a",
    "the",
    "two drawings of a",
    "an image of one",
)


def regularisation_captions(count: int = 390, subjects: Sequence[str] = ()) -> list[str]:
    """`count` different captions, e.g. "a painting of a small cat in the snow"; the same ones every time.

    subjects: what they speak of in turn instead, e.g. "<new1> dog". The lists' lengths (30, 15, 13, 6) are
    walked at steps that pair every kind with many looks and places.
    """
    assert count <= 30 * 13, "the walk repeats itself"
    kinds = [kind.replace("-", " ") for kind in KINDS]
    captions = []
    for i in range(count):
        kind = subjects[i % len(subjects)] if subjects else kinds[i % 30]
        look = LOOKS[(i + i // 30) % 15]
        captions.append(f"{STYLES[(i // 5) % 6]} {look} {kind} {PLACES[i % 13]}")
    return captions

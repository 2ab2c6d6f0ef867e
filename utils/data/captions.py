"""The captions of instance images: the concept's own prompt, or a template of textual inversion's list."""

import random

from utils.config.concepts import Concept
from utils.config.methods import Method

# Written for this repository after the kind of list that textual inversion (Gal et al. 2022) uses: the
# templates with which CLIP was first evaluated on ImageNet. They differ in wording, not in what they say of
# the subject.
TEMPLATES = tuple(
    f"{head} {{}}"
    for head in (
        *("a photo of a", "a photo of the", "a photo of my", "a photo of one", "the photo of a"),
        *("a close photo of a", "a close photo of the", "a good photo of a", "a good photo of the"),
        *("a bright photo of a", "a bright photo of the", "a dark photo of a", "a dark photo of the"),
        *("a clean photo of a", "a clean photo of the", "a nice photo of a", "a nice photo of the"),
        *("a small photo of a", "a small photo of the", "a large photo of a", "a large photo of the"),
        *("a cropped photo of a", "a cropped photo of the", "a picture of a", "a picture of the"),
        *("a rendition of a", "a rendering of a"),
    )
)


def captions_of(method: Method, concept: Concept) -> tuple[str, ...]:
    """Every caption that the concept's images may have, without a prefix."""
    if method.captions == "templates":
        return tuple(template.format(concept.subject) for template in TEMPLATES)
    return (concept.instance_prompt,)


def caption_of(method: Method, concept: Concept, rng: random.Random) -> str:
    """The caption of one item. Only methods with several captions draw from `rng`."""
    captions = captions_of(method, concept)
    return captions[0] if len(captions) == 1 else rng.choice(captions)

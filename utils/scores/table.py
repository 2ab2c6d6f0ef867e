"""The scores, one row each: its name, which way is good, what it needs, and how it is computed.

A new score is a row and a function. The functions import what they compute with when they are called, so
that a command can list the scores before it loads any library.
N images of one subject.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image
    from torch import Tensor

PAIRS = "two images of a prompt"
CLASS_IMAGES = "images of the class alone"
UNRELATED_IMAGES = "images of unrelated prompts, which an evaluation draws itself"


class ScoredImages(Protocol):
    """What a score may ask of one subject's images, all or a batch of them. kind: of a model."""

    texts: list[str]  # what each image is scored against
    groups: list[int]  # the number of each image's prompt
    paths: list[str]  # within the results
    opened: "list[Image]"  # to be asked of a batch
    references: "list[Image]"  # a few of the subject's own
    folder: "Path"  # of the method and subject

    def model(self, kind: str) -> Any: ...

    def features(self, kind: str) -> "Tensor": ...  # (N, D) unit vectors

    def likeness(self, kind: str) -> "Tensor": ...  # (N,) mean cosine with the real images

    def real_features(self, kind: str) -> "list[Tensor]": ...  # (M, D) for each individual

    def class_features(self, kind: str) -> "list[Tensor]": ...  # of images of the class alone, likewise

    def unrelated_features(self, kind: str) -> "tuple[Tensor, Tensor]": ...  # the tuned model's, the base's


@dataclass(frozen=True)
class Score:
    """One score, computed either of each image or of all images of a subject together.

    good: +1 where more is better, -1 where less is, 0 where neither can be said.
    judge: the kind of model that reads the images (a key of utils.scores.judges.KINDS), None for no model.
    of_images: (N,) a value for each of a batch of images; the subject's score is their mean.
    of_subject: one value of all the subject's images.
    needs: PAIRS, CLASS_IMAGES or UNRELATED_IMAGES where it cannot be computed without them.
    """

    name: str
    label: str
    good: int
    meaning: str
    judge: str | None = None
    of_images: "Callable[[ScoredImages], Tensor] | None" = None
    of_subject: "Callable[[ScoredImages], float] | None" = None
    needs: str | None = None
    percent: bool = False

    @property
    def arrow(self) -> str:
        return {1: "↑", -1: "↓", 0: ""}[self.good]


def prompt_cosine(kind: str) -> "Callable[[ScoredImages], Tensor]":
    """(N,) cosine of each image with its own prompt, by the features of a judge of this kind."""

    def cosine(images: ScoredImages) -> "Tensor":
        from utils.scores.similarity import clip_t

        return clip_t(images.features(kind), images.model(kind).text_features(images.texts))

    return cosine


def blip_t(images: ScoredImages) -> "Tensor":
    """(N,) BLIP's score of each image with its own prompt."""
    return images.model("blip").scores(images.texts, images.opened)


def grade(question: str) -> "Callable[[ScoredImages], Tensor]":
    """(N,) a vision-language model's grade of each image, 0 to 4, the mean of its runs."""
    return lambda images: images.model("vlm").grades(images, question)


def vlm_agreement(images: ScoredImages) -> float:
    """How often the runs of a vision-language model agree."""
    from utils.scores.vlm import agreement

    return agreement(images)


def pres(images: ScoredImages) -> float:
    """PRES, its mean over the individuals."""
    from utils.scores.similarity import pres

    pairs = list(zip(images.class_features("dino"), images.real_features("dino"), strict=True))
    return sum(pres(generated, real) for generated, real in pairs) / len(pairs)


def div(images: ScoredImages) -> float:
    """DIV over the prompts of the subject."""
    from utils.scores.similarity import div

    return div(images.features("dino"), images.groups)


def drift(images: ScoredImages) -> float:
    """Drift on prompts that do not name the subject."""
    from utils.scores.similarity import drift

    return drift(*images.unrelated_features("dinov2"))


SCORES: dict[str, Score] = {
    row.name: row
    for row in (
        Score(
            "clip_t",
            "CLIP-T",
            good=1,
            meaning="Does the image show the prompt? Raw cosine of CLIP’s features.",
            judge="clip",
            of_images=prompt_cosine("clip"),
        ),
        Score(
            "blip_t",
            "BLIP-T",
            good=1,
            meaning="Does the image show the prompt, as a BLIP model judges?",
            judge="blip",
            of_images=blip_t,
        ),
        Score(
            "siglip_t",
            "SigLIP-T",
            good=1,
            meaning="Does the image show the prompt? Raw cosine of SigLIP’s features.",
            judge="siglip",
            of_images=prompt_cosine("siglip"),
        ),
        Score(
            "clip_i",
            "CLIP-I",
            good=1,
            meaning="Does it look like the subject? Mean CLIP cosine to every real image.",
            judge="clip",
            of_images=lambda images: images.likeness("clip"),
        ),
        Score(
            "dino_i",
            "DINO-I",
            good=1,
            meaning="The same with DINO, which separates individuals of a class better.",
            judge="dino",
            of_images=lambda images: images.likeness("dino"),
        ),
        Score(
            "pres",
            "PRES",
            good=-1,
            meaning="Forgetting: do images of the class alone resemble the subject? DINO cosine.",
            judge="dino",
            of_subject=pres,
            needs=CLASS_IMAGES,
        ),
        Score(
            "drift",
            "Drift",
            good=-1,
            meaning="Forgetting: how unlike the base’s are images of unrelated prompts? (1 − cosine) / 2.",
            judge="dinov2",
            of_subject=drift,
            needs=UNRELATED_IMAGES,
        ),
        Score(
            "div",
            "DIV",
            good=1,
            meaning="Variety: mean 1 − cosine between images of one subject and prompt.",
            judge="dino",
            of_subject=div,
            needs=PAIRS,
        ),
        Score(
            "vlm_concept",
            "Concept (0–4)",
            good=1,
            meaning="Is it the subject? A vision-language model’s grade, 0 to 4, the mean of three runs.",
            judge="vlm",
            of_images=grade("concept"),
        ),
        Score(
            "vlm_prompt",
            "Prompt (0–4)",
            good=1,
            meaning="Does the image show the prompt? A vision-language model’s grade, 0 to 4, likewise.",
            judge="vlm",
            of_images=grade("prompt"),
        ),
        Score(
            "vlm_agreement",
            "Agreement",
            good=0,
            meaning="Of the vision-language model with itself: share of the pairs of runs with equal grades.",
            judge="vlm",
            of_subject=vlm_agreement,
            percent=True,
        ),
    )
}
OBEYED = "obeyed_"  # and a word: scores of a word judge, where there is one
OBEYED_ALL = f"{OBEYED}all"


def score_row(name: str) -> Score:
    """The row of a score in a table. What no row describes is shown under its name, good neither way."""
    if name in SCORES:
        return SCORES[name]
    if name == OBEYED_ALL:
        return Score(name, "Obeyed", 1, "Share of images that show every word of their prompt.", percent=True)
    if name.startswith(OBEYED):
        word = name.removeprefix(OBEYED).replace("_", " ")
        meaning = f"Share of images that are right about one thing that the prompt names: {word}."
        return Score(name, f"Obeyed: {word}", 1, meaning, percent=True)
    return Score(name, name, 0, "No row describes this score here, nor which way is better.")


def in_order(names: Iterable[str]) -> list[str]:
    """The names as a table shows them: the rows in their order, all words obeyed, then the others by name."""
    names, first = set(names), [*SCORES, OBEYED_ALL]
    return [name for name in first if name in names] + sorted(names.difference(first))

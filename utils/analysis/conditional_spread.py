"""How a concept spreads compared with its class: phrases in the text encoder, samples in DINO.

After ClassDiffusion's Fig. 6 and Algorithm 1, whose text we could not read: here a set is a class or a
concept in many contexts; a plane is fitted on the base alone, and spread and overlap are read in it.

n phrases or images, D width of a feature.
"""

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from utils.analysis.charts import Cloud, save_clouds
from utils.analysis.semantic_space import moments_of, start_of
from utils.analysis.spread import Plane, fit_plane, overlap, spread, variance
from utils.analysis.tuned import Tuned, open_model
from utils.bases.base import BaseModel
from utils.bases.registry import Base, as_dict
from utils.common.errors import UserError
from utils.losses.context_prompts import HEADS, TYPES, kind_of, prompts_of
from utils.sampling.images import sample
from utils.scores.encoders import DinoEncoder

FEWEST = 8  # phrases of a set, below which a covariance says little
REFERENCE, CLASS_AFTER = "class in the base", "class after training"
CONCEPT_BEFORE, CONCEPT_AFTER = "concept before training", "concept after training"
Sets = dict[str, np.ndarray]  # name -> features (n, D)


def contexts_for(tokenizer: Any, words: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` prompts with "{}" for the class or concept, of words that the tokenizer keeps whole.

    Their type is drawn first, each alike. Of pets if all the classes are. Raises UserError where the base
    knows fewer than 8 of them.
    """

    @cache
    def whole(word: str) -> bool:
        return len(tokenizer(word, add_special_tokens=False).input_ids) == 1

    def known(text: str) -> bool:
        parts = [word for word in text.split() if word != "{}"]
        return len(parts) + 8 <= tokenizer.model_max_length and all(map(whole, parts))

    kind = "pets" if all(kind_of(word) == "pets" for word in words) else "things"
    heads = [head for head in HEADS if known(head)]
    fitting = {name: [prompt for prompt in prompts_of(kind, name) if known(prompt)] for name in TYPES}
    types, rng, drawn = [name for name in TYPES if fitting[name]], random.Random(seed), {}
    for _ in range(50 * count if types else 0):
        name = rng.choice(types)
        prompt = rng.choice(fitting[name])
        drawn[prompt if name == "styles" else f"{rng.choice(heads)} {prompt}".strip()] = None
        if len(drawn) == count:
            break
    if len(drawn) < FEWEST:
        raise UserError(
            f"this base's tokenizer keeps whole the words of {len(drawn)} contexts; need {FEWEST}"
        )
    return list(drawn)


@torch.no_grad()
def phrase_set(base: BaseModel, contexts: Sequence[str], subject: str) -> np.ndarray:
    """(n, D) float64: EOS features of the subject in each context; the mean over layers with own states."""
    ids = base.tokenize([context.format(subject) for context in contexts])
    features = base.features(base.encode(ids), ids)
    return torch.stack(features).mean(dim=0).double().cpu().numpy()


def image_sets(
    row: Base,
    base: BaseModel,
    device: str | None,
    tuned: Sequence[Tuned],
    contexts: Sequence[str],
    dino: str,
    seed: int,
) -> tuple[Sets, dict[str, Sets]]:
    """DINO features of samples, one for each context, with seeds seed, seed + 1, …

    Of the concepts' classes from the base; and for each concept, of it and its class after training.
    """
    encoder = DinoEncoder(dino, device)

    def features(model: Any, subject: str, title: str) -> np.ndarray:
        prompts = [context.format(subject) for context in contexts]
        drawn = sample(model.pipeline, prompts, range(seed, seed + len(prompts)), **as_dict(row.sampling))
        images = list(tqdm(drawn, title, total=len(prompts), unit="image"))
        return encoder.image_features(images).double().numpy()

    words = dict.fromkeys(each.word for each in tuned)
    before, sets = {word: features(base, word, f"{word}, base") for word in words}, {}
    for each in tuned:
        after = open_model(row, device, each.path)
        sets[each.name] = {
            REFERENCE: before[each.word],
            CLASS_AFTER: features(after, each.word, f"{each.word}, {each.name}"),
            CONCEPT_AFTER: features(after, each.subject, f"{each.subject}, {each.name}"),
        }
    return before, sets


def text_sets(row: Base, device: str | None, tuned: Tuned, contexts: Sequence[str], before: Sets) -> Sets:
    """The base's classes, the concept with its first rows, and the concept and its class after training.

    before: class word -> its phrases in the base.
    """
    others = {f"{word} in the base": each for word, each in before.items() if word != tuned.word}
    start = open_model(row, device)
    start_of(start, moments_of(tuned)[0])
    after = open_model(row, device, tuned.path)
    return (
        {REFERENCE: before[tuned.word]}
        | others
        | {
            CONCEPT_BEFORE: phrase_set(start, contexts, tuned.subject),
            CLASS_AFTER: phrase_set(after, contexts, tuned.word),
            CONCEPT_AFTER: phrase_set(after, contexts, tuned.subject),
        }
    )


def compare(
    tuned: Sequence[Tuned], before: Sets, sets: dict[str, Sets], stem: Path
) -> tuple[dict[str, Any], list[Path]]:
    """The numbers and points of every concept's sets, in a plane fitted on the base's; and the charts."""
    plane = fit_plane(np.concatenate(list(before.values())))
    numbers = {name: numbers_of(plane, own) for name, own in sets.items()}
    points = {
        name: {key: plane.project(features).tolist() for key, features in own.items()}
        for name, own in sets.items()
    }
    charts = draw(plane, [(f"{each.name} ({each.word})", sets[each.name]) for each in tuned], stem)
    return {"explained": plane.explained, "numbers": numbers, "points": points}, charts


def numbers_of(plane: Plane, sets: Sets) -> dict[str, dict[str, float]]:
    """name -> spread, variance in all dimensions, and overlap with the class in the base."""
    placed = {name: plane.project(features) for name, features in sets.items()}
    return {
        name: {
            "spread": spread(placed[name]),
            "variance": variance(features),
            "overlap": overlap(placed[name], placed[REFERENCE]),
        }
        for name, features in sets.items()
    }


def draw(plane: Plane, panels: Sequence[tuple[str, Sets]], stem: Path) -> list[Path]:
    """A panel for each (title, sets): the base's as rings, the class in grey; after training filled."""
    series: dict[str, int | None] = {REFERENCE: None, CONCEPT_AFTER: 0, CONCEPT_BEFORE: 0, CLASS_AFTER: 1}
    for name in dict.fromkeys(name for _, sets in panels for name in sets):
        series.setdefault(name, len(series) - 2)  # other classes
    drawn = []
    for title, sets in panels:
        clouds = [
            Cloud(name, series[name], plane.project(features), name in (CONCEPT_AFTER, CLASS_AFTER))
            for name, features in sets.items()
        ]
        drawn.append((title, clouds))
    labels = tuple(f"component {i} ({share:.0%})" for i, share in enumerate(plane.explained, start=1))
    return save_clouds(drawn, labels, stem)


def line_of(numbers: dict[str, dict[str, float]]) -> str:
    """'concept after 0.69, 0.99; …': spread and overlap of each set."""
    return "; ".join(f"{name} {each['spread']:.2f}, {each['overlap']:.2f}" for name, each in numbers.items())

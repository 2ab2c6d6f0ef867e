"""How alike images are to their prompts and to other images: CLIP-T, CLIP-I, DINO-I, PRES, DIV, Drift.

N generated images or their prompts, M real images, P CLIP's projection width, D width of any features.
The encoders that make the features are in encoders.py.
"""

import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from utils.common.errors import UserError

# A class word behind one of these belongs to something else: "<new1> next to a dog", "<new1> and a dog".
LINKS = "a an the and or in on at of to by with near wearing holding".split()


def clip_t(image_features: Tensor, text_features: Tensor) -> Tensor:
    """CLIP-T: (N,) raw cosine in [-1, 1] of each image with its own prompt.

    image_features, text_features: (N, P) unit vectors, pair by pair. The prompt is to be scored without its
    modifier token: `without_modifier` (Custom Diffusion) or `with_class`. Custom Diffusion's code prints
    2.5 * max(cosine, 0) instead.
    """
    assert image_features.shape == text_features.shape, (image_features.shape, text_features.shape)
    return (image_features * text_features).sum(dim=1)


def mean_similarity(generated: Tensor, real: Tensor) -> Tensor:
    """(N,) mean cosine of each generated image with all real ones, in [-1, 1].

    generated: (N, D), real: (M, D), unit vectors. Its mean over the images is CLIP-I or DINO-I.
    """
    assert len(real) and generated.shape[1] == real.shape[1], (generated.shape, real.shape)
    return (generated @ real.T).mean(dim=1)


def clip_i(generated: Tensor, real: Tensor) -> float:
    """CLIP-I (DreamBooth, Ruiz et al. 2023): mean cosine over all generated x real pairs, in [-1, 1].

    generated: (N, P), real: (M, P), unit vectors of a ClipEncoder.
    """
    assert len(generated), "no generated images"
    return mean_similarity(generated, real).mean().item()


def dino_i(generated: Tensor, real: Tensor) -> float:
    """DINO-I (DreamBooth, Ruiz et al. 2023): CLIP-I's mean on the unit vectors of a DinoEncoder."""
    return clip_i(generated, real)


def pres(class_generated: Tensor, real: Tensor) -> float:
    """PRES (DreamBooth): DINO-I of images of the *class*, "a photo of a dog", to the real subject.

    Low is good: a high value means that the class has turned into the subject. Unit vectors (N, D), (M, D).
    """
    return dino_i(class_generated, real)


def div(features: Tensor, groups: Sequence[Hashable]) -> float:
    """DIV (DreamBooth): mean distance between images of one subject and prompt, in [0, 2]; high is good.

    features: (N, D) unit vectors; groups: (N,) what subject and prompt each image has. The mean over the
    groups of the mean 1 - cosine of a group's pairs; a group of one image has no pair and does not count.
    DreamBooth's distance is LPIPS: the values are not comparable with those it prints.
    Raises UserError when no group has two images.
    """
    members = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    assert sum(map(len, members.values())) == len(features), (len(groups), len(features))
    distances = []
    for chosen in members.values():
        n = len(chosen)
        cosine = features[chosen] @ features[chosen].T  # (n, n)
        if n > 1:
            distances.append(1 - (cosine.sum() - cosine.diagonal().sum()) / (n * (n - 1)))
    if not distances:
        raise UserError("DIV is given one image per prompt; it needs two or more of the same prompt")
    return torch.stack(distances).mean().item()


def drift(tuned: Tensor, base: Tensor) -> float:
    """Drift (PEFT's comparison of methods for image generation): how far prompts that do not name the subject
    have come to give other images than the base gave; in [0, 1], low is good.

    tuned, base: (N, D) unit vectors of a DINOv2, pair by pair of the same prompt and seed. The mean of
    (1 - cosine) / 2.
    """
    assert len(tuned) and tuned.shape == base.shape, (tuned.shape, base.shape)
    return ((1 - (tuned * base).sum(dim=1)) / 2).mean().item()


def without_modifier(prompt: str, tokens: Iterable[str]) -> str:
    """The prompt as Custom Diffusion scores it: "a <new1> dog" -> "a dog", "a <new1>" -> "a"."""
    for token in tokens:
        prompt = re.sub(_whole(token), " ", prompt)
    return _tidy(prompt)


def with_class(prompt: str, token_classes: Mapping[str, str]) -> str:
    """The prompt in ordinary words: each modifier token gives way to its class word.

    "a <new1> dog" -> "a dog"; bare, "a <new1> on the beach" -> "a dog on the beach". The class word also
    counts as there behind one or two adjectives: "a <new1> white dog" -> "a white dog".
    """
    for token, word in token_classes.items():
        adjectives = rf"(?:(?!(?:{'|'.join(LINKS)})\b)\w+\s+){{0,2}}"
        named = rf"{_whole(token)}\s*(?={adjectives}(?i:{re.escape(word)})\b)"
        prompt = re.sub(named, " ", prompt)
        prompt = re.sub(_whole(token), lambda _, word=word: word, prompt)
    return _tidy(prompt)


def _whole(token: str) -> str:
    """A pattern that finds the token, but not "sks" in "asks"."""
    before = r"(?<!\w)" if re.match(r"\w", token) else ""
    after = r"(?!\w)" if re.search(r"\w$", token) else ""
    return before + re.escape(token) + after


def _tidy(prompt: str) -> str:
    """Single spaces, none before a comma or full stop."""
    return re.sub(r"\s+([,.;:!?])", r"\1", " ".join(prompt.split()))

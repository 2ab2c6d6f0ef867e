"""How much, how far and how smoothly a clip moves, measured on its images.

A clip is a list of F images, H = W pixels; D width of any unit features of its frames.
"""

import random
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

Clip = Sequence[Image.Image]


def pixels_of(clip: Clip) -> np.ndarray:
    """(F, H, W, 3) float in [0, 1]."""
    return np.stack([np.asarray(frame.convert("RGB"), dtype=float) for frame in clip]) / 255


def centroids(clip: Clip) -> np.ndarray:
    """(F, 2) where the subject is, from the left and from the top, in fractions of the side.

    It is the centre of all that is not background, on plain grounds: a row of the background has one colour,
    the median of the row's outer eighths in all frames. A pixel weighs as much as it differs from that colour
    by more than .15.
    """
    pixels = pixels_of(clip)
    side = pixels.shape[2]
    edges = np.concatenate([pixels[:, :, : side // 8], pixels[:, :, -(side // 8) :]], axis=2)
    background = np.median(edges, axis=(0, 2))  # (H, 3)
    weight = np.clip(np.abs(pixels - background[:, None]).mean(-1) - 0.15, 0, None)  # (F, H, W)
    whole = np.maximum(weight.sum((1, 2)), 1e-9)
    places = (np.arange(side) + 0.5) / side
    return np.stack(
        [(weight.sum(1) * places).sum(1) / whole, (weight.sum(2) * places).sum(1) / whole], axis=1
    )


def displacement(clip: Clip) -> dict[str, float]:
    """`across`, `up`: between the subject's farthest places; `forward`: how much further right it is in the
    last quarter of the frames than in the first, which flicker hardly moves; all in fractions of the side.

    And `change`.
    """
    places = centroids(clip)
    across, up = np.ptp(places, axis=0)
    quarter = max(1, len(places) // 4)
    forward = places[-quarter:, 0].mean() - places[:quarter, 0].mean()
    return {"across": float(across), "forward": float(forward), "up": float(up), "change": change(clip)}


def change(clip: Clip) -> float:
    """Mean absolute difference of successive frames, 0 to 1."""
    return float(np.abs(np.diff(pixels_of(clip), axis=0)).mean())


def succession(features: Tensor) -> float:
    """Mean cosine of each frame with the next. features: (F, D) unit vectors."""
    return (features[1:] * features[:-1]).sum(1).mean().item()


def smoothness(clips: Sequence[Clip], features: Tensor) -> dict[str, float]:
    """Likeness (`succession`) and `change` of successive frames, in true and in shuffled order, clips' mean.

    features: (clips · F, D) unit vectors, clip by clip.
    """
    rows: dict[str, list[float]] = defaultdict(list)
    for number, (clip, own) in enumerate(zip(clips, features.split(len(clips[0])), strict=True)):
        order = random.Random(f"shuffle/{number}").sample(range(len(clip)), len(clip))
        rows["likeness, true order"].append(succession(own))
        rows["likeness, shuffled"].append(succession(own[order]))
        rows["change, true order"].append(change(clip))
        rows["change, shuffled"].append(change([clip[i] for i in order]))
    return {name: float(np.mean(values)) for name, values in rows.items()}


def mean_of(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each entry; all rows have the same."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

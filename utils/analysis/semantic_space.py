"""Where training takes a concept's phrase, and what it does to the class: over steps and methods.

Distances are 1 − cos between EOS features: of "a photo of a <new1> dog" in the tuned text encoder, and of "a
photo of a dog" and of other classes in the base's. Drift is that of utils/measures/drift.py.

K = 1 phrase, D text width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.analysis.charts import Panel, save_lines
from utils.analysis.tuned import Tuned
from utils.bases.base import BaseModel
from utils.common.errors import UserError
from utils.config.train_config import TrainConfig, read_config
from utils.losses.spl import cosine_distance
from utils.measures.drift import Probe, measure_drift
from utils.report.charts import Curve
from utils.training.checkpoints import checkpoints, step_of

PHRASE = "a photo of a {}"
Record = dict[str, Any]


@dataclass(frozen=True)
class Moment:
    """A concept after some steps of its training. path: None before the first."""

    tuned: Tuned
    config: TrainConfig
    step: int
    path: Path | None


def moments_of(tuned: Tuned) -> list[Moment]:
    """Step 0, every whole checkpoint, and the result where the last step left no checkpoint.

    Raises UserError for a folder that does not say how it was trained.
    """
    file = tuned.path / "training_config.json"
    if not file.is_file():
        raise UserError(f"{tuned.path} has no training_config.json; give a folder of train_classdiffusion.py")
    config = read_config(file)[0]
    steps = {step_of(path): path for path in checkpoints(tuned.path)}
    if not steps:
        steps[config.max_train_steps] = tuned.path
    return [Moment(tuned, config, 0, None), *(Moment(tuned, config, *each) for each in sorted(steps.items()))]


@torch.no_grad()
def phrase_features(base: BaseModel, text: str) -> list[Tensor]:
    """[(1, D)]: the phrase's EOS feature; one for each cross-attention layer with its own text states."""
    ids = base.tokenize([text])
    return base.features(base.encode(ids), ids)


def distance(features: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Mean over layers of 1 − cos, in [0, 2]; `others` has one feature, or one for each layer."""
    pairs = zip(features, list(others) * (len(features) // len(others)), strict=True)
    return torch.stack([cosine_distance(a, b).mean() for a, b in pairs]).mean().item()


def measure(base: BaseModel, moment: Moment, words: dict[str, list[Tensor]], probe: Probe) -> Record:
    """One point of every chart. base: as the moment has it; words: class word -> its feature in the base."""
    tuned = moment.tuned
    phrase = phrase_features(base, PHRASE.format(tuned.subject))
    own = phrase_features(base, PHRASE.format(tuned.word))
    distances = {word: distance(phrase, feature) for word, feature in words.items()}
    others = [value for word, value in distances.items() if word != tuned.word]
    return {
        "concept": tuned.name,
        "step": moment.step,
        "to_class": distances[tuned.word],
        "to_others": sum(others) / len(others),
        "distances": distances,
        "class_moved": distance(own, words[tuned.word]),
        "drift": vars(measure_drift(base, probe)),
    }


def start_of(base: BaseModel, moment: Moment) -> None:
    """Put the tokens into an untouched base as the training did before its first step."""
    base.add_tokens(*moment.config.vectors(), moment.config.start)


def measure_all(
    moments: Sequence[Moment],
    open_model: Callable[[Path | None], Any],
    words: dict[str, list[Tensor]],
    probes: dict[str, Probe],
) -> Iterator[Record]:
    """A record for each moment. open_model(path): the base with the concept at `path`, None for none of it.

    probes: class word -> what the base makes of that class.
    """
    for moment in moments:
        base = open_model(moment.path)
        if moment.path is None:
            start_of(base, moment)
        yield measure(base, moment, words, probes[moment.tuned.word])


def draw(records: Sequence[Record], tuned: Sequence[Tuned], stem: Path) -> list[Path]:
    """The four charts in one figure: distance to the own class, to others, and both drifts."""
    values: tuple[tuple[str, str, Callable[[Record], float]], ...] = (
        ("Concept phrase to its class", "1 − cos", lambda r: r["to_class"]),
        ("Concept phrase to other classes, mean", "1 − cos", lambda r: r["to_others"]),
        ("Keys and values of class captions", "relative change", lambda r: r["drift"]["layers"]),
        ("Predicted noise of class images", "relative mean square", lambda r: r["drift"]["relative"]),
    )
    panels = []
    for title, y_label, value in values:
        curves = [
            Curve(each.name, i, [(r["step"], value(r)) for r in records if r["concept"] == each.name])
            for i, each in enumerate(tuned)
        ]
        own = 1e-3 if value is values[0][2] else None  # methods differ by orders of magnitude there
        panels.append(Panel(title, "Training step", y_label, curves, own))
    return save_lines(panels, stem)


def summary(tuned: Tuned, records: Sequence[Record]) -> str:
    """A line of the first and the last point of a concept."""
    first, last = records[0], records[-1]
    return (
        f"{tuned.name}: to '{tuned.word}' {first['to_class']:.4f} -> {last['to_class']:.4f}, "
        f"to other classes {first['to_others']:.4f} -> {last['to_others']:.4f}, "
        f"keys and values moved {last['drift']['layers']:.1%}, prediction {last['drift']['relative']:.2%} "
        f"after {last['step']} steps"
    )

"""What a study has found: means over subjects with intervals, curves, comparisons at equal likeness.

A subject's value is the mean over its training seeds; intervals are t intervals over subjects.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.common.files import read_json
from utils.evaluation.folder import BASE, SCORES_FILE, Scores
from utils.measures.selection import SELECTION_FILE
from utils.scores.statistics import Interval, mean_interval
from utils.scores.table import OBEYED_ALL, score_row

if TYPE_CHECKING:
    from utils.study.cells import Cell

LIKENESS = "dino_i"

Values = Mapping[str, float]  # score -> value
Curve = Sequence[tuple[float, float]]  # (likeness, words): the base, then a training's checkpoints, by steps


@dataclass(frozen=True)
class Point:
    """One checkpoint of one training."""

    name: str  # of what it is judged as
    subject: str
    seed: int
    step: int
    values: Values


@dataclass(frozen=True)
class Comparison:
    """Words at equal likeness, a variant minus the reference, over the trainings that both have."""

    name: str
    subjects: int
    trainings: int
    difference: Interval | None


@dataclass(frozen=True)
class Loss:
    """How many of the subjects lost composition within the training, and at which steps they first had."""

    name: str
    subjects: int
    steps: tuple[int, ...]


def read_points(cells: "Iterable[Cell]", results: Path) -> list[Point]:
    """Those that are judged."""
    return [
        Point(name, cell.subject.name, cell.seed, step, Scores.read(results / place).metric)
        for cell in cells
        for step, name, share in cell.places()
        if (results / (place := cell.place(step, share)) / SCORES_FILE).is_file()
    ]


def read_base(subjects: Iterable[str], results: Path) -> dict[str, Values]:
    """subject -> the scores of the untouched base, which is given class prompts."""
    folders = {name: results / BASE / name for name in subjects}
    return {n: Scores.read(f).metric for n, f in folders.items() if (f / SCORES_FILE).is_file()}


def read_choices(cells: "Iterable[Cell]", results: Path) -> list[tuple[str, str, str, int, int]]:
    """(variant, criterion, subject, seed, step) of the checkpoints that --select_checkpoint chose."""
    found = []
    for cell in cells:
        file = cell.folder(results) / "concept" / SELECTION_FILE
        if file.is_file():
            choice, name = read_json(file), cell.training.variant.name
            found.append((name, choice["criterion"], cell.subject.name, cell.seed, choice["step"]))
    return found


def words_of(points: Iterable[Point]) -> str:
    """The score of obedience: the words obeyed where they can be read off images, else CLIP-T."""
    return OBEYED_ALL if any(OBEYED_ALL in point.values for point in points) else "clip_t"


def by_subject(points: Iterable[Point], score: str) -> dict[str, float]:
    """subject -> its mean over training seeds; of points of one variant and step."""
    values: dict[str, list[float]] = {}
    for point in points:
        if score in point.values:
            values.setdefault(point.subject, []).append(point.values[score])
    return {subject: float(np.mean(each)) for subject, each in values.items()}


def interval_of(points: Iterable[Point], score: str) -> Interval | None:
    """Over subjects; a share stays between 0 and 1."""
    values = by_subject(points, score)
    bounds = (0, 1) if score_row(score).percent else None
    return mean_interval(list(values.values()), bounds=bounds) if values else None


def difference_at(
    points: Iterable[Point], name: str, reference: str, step: int, score: str
) -> Interval | None:
    """A variant's score minus the reference's at the same step, paired by subject and seed."""
    values: dict[str, dict[tuple[str, int], float]] = {name: {}, reference: {}}
    for point in points:
        if point.step == step and point.name in values and score in point.values:
            values[point.name][point.subject, point.seed] = point.values[score]
    found: dict[str, list[float]] = {}
    for key in sorted(values[name].keys() & values[reference].keys()):
        found.setdefault(key[0], []).append(values[name][key] - values[reference][key])
    return mean_interval([float(np.mean(each)) for each in found.values()]) if found else None


def reached(curve: Curve, level: float) -> float:
    """The words of a training when it first reaches a likeness, linear between checkpoints.

    level: from the likeness of the base to the highest.
    """
    before = None
    for likeness, words in curve:
        if likeness >= level:
            if before is None or likeness == before[0]:
                return words
            share = (level - before[0]) / (likeness - before[0])
            return before[1] + share * (words - before[1])
        before = (likeness, words)
    raise ValueError(f"likeness {level} is above the curve's highest")


def at_equal_likeness(a: Curve, b: Curve) -> float:
    """a's words minus b's, each read where it first reaches the highest likeness that both reach: as if each
    training were stopped there."""
    level = min(max(likeness for likeness, _ in each) for each in (a, b))
    return reached(a, level) - reached(b, level)


def curves_of(
    points: Iterable[Point], base: Mapping[str, Values], words: str
) -> dict[tuple[str, int], Curve]:
    """(subject, seed) -> its curve; of points of one variant, of subjects whose base is judged."""
    curves: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for point in sorted(points, key=lambda each: each.step):
        if point.subject in base:
            start = [(base[point.subject][LIKENESS], base[point.subject][words])]
            curve = curves.setdefault((point.subject, point.seed), start)
            curve.append((point.values[LIKENESS], point.values[words]))
    return curves


def compare(
    points: Sequence[Point], base: Mapping[str, Values], name: str, reference: str, words: str
) -> Comparison:
    """Paired: each training with the reference's of the same subject and seed, then the mean over seeds."""
    mine, other = (curves_of([p for p in points if p.name == n], base, words) for n in (name, reference))
    found: dict[str, list[float]] = {}
    for key in mine.keys() & other.keys():
        found.setdefault(key[0], []).append(at_equal_likeness(mine[key], other[key]))
    means = [float(np.mean(found[subject])) for subject in sorted(found)]
    trainings = sum(map(len, found.values()))
    return Comparison(name, len(means), trainings, mean_interval(means) if means else None)


def loss_of(points: Sequence[Point], name: str, base: Mapping[str, Values], words: str, lost: float) -> Loss:
    """Composition is lost at the first checkpoint where a subject's words are at least the share `lost` below
    those of the base."""
    steps: dict[str, int] = {}
    mine = [point for point in points if point.name == name and point.subject in base]
    for step in sorted({point.step for point in mine}):
        for subject, value in by_subject([p for p in mine if p.step == step], words).items():
            if value <= (1 - lost) * base[subject][words]:
                steps.setdefault(subject, step)
    return Loss(name, len({point.subject for point in mine}), tuple(sorted(steps.values())))

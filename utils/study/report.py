"""The end of a study: study.json, table.md and a figure of the curves."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.analysis.charts import FILE_STYLE, HEIGHT, WIDTH, colour, save_figure
from utils.common.errors import UserError
from utils.common.files import read_json, write_json, write_text
from utils.common.words import counted
from utils.evaluation.folder import Settings
from utils.evaluation.table import cell_of, grid
from utils.report.charts import DASHES, SERIES
from utils.scores.statistics import CONFIDENCE, Interval, mean_interval
from utils.scores.table import in_order, score_row
from utils.study.cells import Cell
from utils.study.plan import Plan
from utils.study.results import (
    LIKENESS,
    Point,
    Values,
    compare,
    difference_at,
    interval_of,
    loss_of,
    read_base,
    read_choices,
    read_points,
    words_of,
)

SHOWN = ("pres", "drift", "div", "clip_t")  # scores beside words and likeness


@dataclass(frozen=True)
class Found:
    """What is judged so far. names: of the variants, in the plan's order. choices: of `read_choices`."""

    plan: Plan
    settings: Settings
    cells: Sequence[Cell]
    points: list[Point]
    base: dict[str, Values]
    words: str
    digests: list[str]
    choices: list[tuple[str, str, str, int, int]]

    @property
    def names(self) -> list[str]:
        names = [name for cell in self.cells for name in cell.training.judged]
        return [name for name in dict.fromkeys(names) if any(p.name == name for p in self.points)]

    @property
    def columns(self) -> list[str]:
        """The scores that are shown."""
        scores = {score for point in self.points for score in point.values}
        return [self.words, LIKENESS, *(n for n in in_order(scores) if n in SHOWN and n != self.words)]

    def at(self, name: str, step: int) -> list[Point]:
        return [point for point in self.points if point.name == name and point.step == step]

    def steps(self, name: str) -> list[int]:
        return sorted({point.step for point in self.points if point.name == name})


def write_results(
    results: Path, plan: Plan, settings: Settings, cells: Sequence[Cell], subjects: Sequence[str]
) -> str | None:
    """Writes what is judged so far, and returns the table; None where nothing is.

    Raises UserError for trainings of different weights of the base.
    """
    points = read_points(cells, results)
    if not points:
        return None
    base, digests = read_base(subjects, results), _digests(cells, results)
    if len(digests) > 1:
        raise UserError(
            f"{results} has trainings of different bases ({', '.join(digests)}): give another folder"
        )
    choices = read_choices(cells, results)
    found = Found(plan, settings, cells, points, base, words_of(points), digests, choices)
    text = as_markdown(found)
    write_json(
        results / "study.json",
        {
            "plan": plan.path.name,
            "base": settings.base,
            "digest": digests,
            "words": found.words,
            "of_the_base": base,
            "points": [asdict(point) for point in points],
        },
    )
    write_text(results / "table.md", text)
    draw_curves(found, results / "curves")
    return text


def _digests(cells: Sequence[Cell], results: Path) -> list[str]:
    files = [cell.folder(results) / "concept" / "concept.json" for cell in cells]
    return sorted({str(read_json(file).get("base_digest")) for file in files if file.is_file()})


def as_markdown(found: Found) -> str:
    """The table for people: what it rests on, every checkpoint, words at equal likeness, composition lost."""
    plan, settings, cells = found.plan, found.settings, found.cells
    judged = {(p.name, p.subject, p.seed, p.step) for p in found.points}
    planned = sum(1 for cell in cells for _ in cell.places())
    subjects = sorted({point.subject for point in found.points})
    seeds = sorted({point.seed for point in found.points})
    words, likeness = score_row(found.words).label, score_row(LIKENESS).label
    level = f"{CONFIDENCE:.0%}".replace("%", " %")
    hardware = ", ".join(f"{key} {value}" for key, value in settings.hardware.items())
    head = (
        f"Plan {plan.path.name} on {settings.base}, weights {', '.join(found.digests)}: "
        f"{len(judged)} of {counted(planned, 'checkpoint')} judged; {counted(len(subjects), 'subject')} "
        f"({', '.join(subjects)}), training seeds {', '.join(map(str, seeds))}; image seeds "
        f"{', '.join(map(str, settings.seeds))}, {settings.drawing.num_inference_steps} denoising steps. "
        f"{hardware}. [{level} t interval over subjects, whose values are means over their seeds]"
    )
    reference = plan.reference
    others = [name for name in found.names if name != reference]
    comparisons = [compare(found.points, found.base, name, reference, found.words) for name in others]
    losses = [loss_of(found.points, name, found.base, found.words, plan.lost) for name in found.names]
    equal = [
        [each.name, each.subjects, each.trainings, cell_of(each.difference, "+")] for each in comparisons
    ]
    lost = [
        [each.name, f"{len(each.steps)} of {each.subjects}", ", ".join(map(str, each.steps)) or "–"]
        for each in losses
    ]
    parts = [
        head,
        _checkpoints(found),
        f"Minus {reference} at the same step, paired by subject and seed:",
        _differences(found),
        f"{words} at equal {likeness}, minus {reference}: each training read where it first reaches the "
        "highest likeness that both reach, on straight lines between the base and its checkpoints; paired by "
        "subject and seed:",
        grid(["variant", "subjects", "pairs of trainings", f"{words}, difference"], equal),
        *_choices(found),
        f"Composition lost: {words} at least {plan.lost:.0%} below the base's, at the first such checkpoint:",
        grid(["variant", "subjects that lost it", "steps"], lost),
    ]
    models = "; ".join(f"{kind} {model}" for kind, model in settings.models.items())
    versions = ", ".join(f"{name} {version}" for name, version in settings.versions.items())
    return "\n\n".join([*(part for part in parts if part), f"- {models}\n- {versions}"]) + "\n"


def _checkpoints(found: Found) -> str:
    columns = found.columns
    heads = [score_row(name).label + (" ↓" if score_row(name).good < 0 else "") for name in columns]
    rows: list[list[Any]] = [
        ["base", "–", len(found.base), *(cell_of(_of_base(found.base, n)) for n in columns)]
    ]
    for name in found.names:
        for step in found.steps(name):
            points = found.at(name, step)
            cells = [cell_of(interval_of(points, column)) for column in columns]
            rows.append([name, step, len({point.subject for point in points}), *cells])
    return grid(["variant", "step", "subjects", *heads], rows)


def _differences(found: Found) -> str:
    columns, reference = found.columns, found.plan.reference
    rows = []
    for name in found.names:
        shared = set(found.steps(name)) & set(found.steps(reference)) if name != reference else ()
        for step in sorted(shared):
            cells = [difference_at(found.points, name, reference, step, column) for column in columns]
            rows.append([name, step, *(cell_of(each, "+") for each in cells)])
    return grid(["variant", "step", *(score_row(name).label for name in columns)], rows)


def _choices(found: Found) -> list[str]:
    """What a checkpoint rule took, where the plan has --select_checkpoint."""
    rows = []
    for name, criterion in dict.fromkeys(each[:2] for each in found.choices):
        chosen = {each[2:] for each in found.choices if each[:2] == (name, criterion)}
        points = [p for p in found.points if p.name == name and (p.subject, p.seed, p.step) in chosen]
        steps = ", ".join(str(step) for _, _, step in sorted(chosen))
        cells = [cell_of(interval_of(points, column)) for column in found.columns]
        rows.append([name, criterion, len({p.subject for p in points}), steps, *cells])
    heads = ["variant", "rule", "subjects", "steps", *(score_row(name).label for name in found.columns)]
    return ["The checkpoints that --select_checkpoint chose:", grid(heads, rows)] if rows else []


def _of_base(base: Mapping[str, Values], score: str) -> Interval | None:
    values = [each[score] for each in base.values() if score in each]
    bounds = (0, 1) if score_row(score).percent else None
    return mean_interval(values, bounds=bounds) if values else None


def draw_curves(found: Found, stem: Path) -> list[Path]:
    """For each arm but the reference's, its variants and the reference: words against likeness, with the
    base as a cross, and against steps; with intervals."""
    arm_of = {name: c.training.variant.arm for c in found.cells for name in c.training.judged}
    arms = list(dict.fromkeys(arm_of[name] for name in found.names if name != found.plan.reference))
    arms = arms or [arm_of[found.plan.reference]]
    words, likeness = score_row(found.words), score_row(LIKENESS)
    with matplotlib.rc_context(FILE_STYLE):
        figure = Figure(figsize=(2 * WIDTH, HEIGHT * len(arms)), layout="constrained")
        for row, arm in enumerate(arms):
            names = [n for n in found.names if n == found.plan.reference or arm_of[n] == arm]
            axes = [figure.add_subplot(len(arms), 2, 2 * row + i + 1) for i in range(2)]
            for name in names:
                at = [found.at(name, step) for step in found.steps(name)]
                y = [interval_of(points, found.words) for points in at]
                x = [interval_of(points, LIKENESS) for points in at]
                series = None if name == found.plan.reference else names.index(name)
                _curve(axes[0], name, series, x, y)
                _curve(axes[1], name, series, [Interval(step) for step in found.steps(name)], y)
            _curve(axes[0], "base", None, *([_of_base(found.base, n)] for n in (LIKENESS, found.words)))
            for ax, label in zip(axes, (likeness.label, "training steps"), strict=True):
                ax.set_xlabel(label)
                ax.set_ylabel(words.label)
                ax.xaxis.grid(False)
            axes[0].set_title(arm, fontsize=9.5, loc="left")
            axes[1].legend(fontsize=7)
        return save_figure(figure, stem)


def _curve(ax: Axes, name: str, series: int | None, x: Sequence[Interval], y: Sequence[Interval]) -> None:
    """A line with a dot for each checkpoint, and its intervals as thin crosses."""
    dash = DASHES[(series or 0) // SERIES % len(DASHES)]
    xs, ys = [each.mean for each in x], [each.mean for each in y]
    shape = {"marker": "x", "markersize": 6} if name == "base" else {"marker": "o", "markersize": 3}
    ax.plot(xs, ys, color=colour(series), linestyle=dash, label=name, **shape)
    for a, b in zip(x, y, strict=True):
        thin = {"color": colour(series), "linewidth": 0.6, "alpha": 0.45}
        if a.low is not None:
            ax.plot([a.low, a.high], [b.mean] * 2, **thin)
        if b.low is not None:
            ax.plot([a.mean] * 2, [b.low, b.high], **thin)

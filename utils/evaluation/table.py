"""The table of an evaluation: every method's mean over subjects, with its interval, and the differences.

Only what one evaluator measured in one run stands in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from utils.evaluation.folder import Scores
from utils.scores.statistics import CONFIDENCE, Interval, mean_interval, paired_interval
from utils.scores.table import in_order, score_row


@dataclass(frozen=True)
class MethodRow:
    """A method over all subjects: how many subjects and images, and score -> mean over the subjects."""

    method: str
    subjects: int
    images: int
    metric: dict[str, Interval]


@dataclass(frozen=True)
class Difference:
    """Method a minus method b, over the subjects that both have a score of."""

    a: str
    b: str
    metric: dict[str, Interval]


@dataclass(frozen=True)
class SubjectRow:
    """A subject's scores with one method."""

    subject: str
    method: str
    metric: dict[str, float]


@dataclass(frozen=True)
class Table:
    """table.json: metrics in the order of their columns, and the model behind each; categories: of subjects,
    where a benchmark has some -> its rows."""

    metrics: list[str]
    models: dict[str, str]
    rows: list[MethodRow]
    paired: list[Difference]
    per_subject: list[SubjectRow]
    seeds: list[int]
    versions: dict[str, str]
    categories: dict[str, list[MethodRow]]
    confidence: float = CONFIDENCE
    interval: str = "t"


def build_table(
    scores: Mapping[tuple[str, str], Scores],
    subjects: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    versions: Mapping[str, str],
    categories: Mapping[str, Sequence[str]] | None = None,
) -> Table:
    """scores: of each (subject, method). The differences are a - b, a after b in `methods`. categories:
    name -> its subjects."""
    metrics = in_order(name for each in scores.values() for name in each.metric)

    def row(method: str, of: Sequence[str]) -> MethodRow:
        mine = [scores[subject, method] for subject in of]
        values = {name: [each.metric[name] for each in mine if name in each.metric] for name in metrics}
        means = {name: _interval(name, column) for name, column in values.items() if column}
        return MethodRow(method, len(mine), sum(each.images for each in mine), means)

    def difference(a: str, b: str) -> Difference:
        found = {}
        for name in metrics:
            one, two = (
                {s: v for s in subjects if (v := scores[s, m].metric.get(name)) is not None} for m in (a, b)
            )
            if one.keys() & two.keys():
                found[name] = paired_interval(one, two)
        return Difference(a, b, found)

    return Table(
        metrics=metrics,
        models={
            name: each.models[name] for name in metrics for each in scores.values() if name in each.models
        },
        rows=[row(method, subjects) for method in methods],
        paired=[difference(a, b) for b, a in combinations(methods, 2)],
        per_subject=[
            SubjectRow(subject, method, dict(scores[subject, method].metric))
            for subject in subjects
            for method in methods
        ],
        seeds=list(seeds),
        versions=dict(versions),
        categories={
            name: [row(method, of) for method in methods] for name, of in sorted((categories or {}).items())
        },
    )


def _interval(name: str, values: Sequence[float]) -> Interval:
    """The mean of a score over subjects; a share stays between 0 and 1."""
    return mean_interval(values, bounds=(0, 1) if score_row(name).percent else None)


def as_markdown(table: Table) -> str:
    """The table for people: scores, differences, every subject, and what they were made with."""
    metrics, level = table.metrics, f"{table.confidence:.0%}".replace("%", " %")
    names = [name + (" ↓" if score_row(name).good < 0 else "") for name in metrics]
    intervals = any(cell.low is not None for row in table.rows for cell in row.metric.values())
    spread = f" [{level} {table.interval} interval over subjects]"
    differences = [
        [f"{pair.a} − {pair.b}", *(cell_of(pair.metric.get(name), "+") for name in metrics)]
        for pair in table.paired
    ]
    subjects = [
        [row.subject, row.method, *(_number(row.metric.get(name)) for name in metrics)]
        for row in table.per_subject
    ]
    parts = [
        f"Mean over subjects{spread if intervals else ', of which there is one: no intervals'}; "
        "↓: low is good. Scores of other models or evaluators are not comparable with these.",
        grid(["method", "subjects", "images", *names], _cells(table.rows, metrics)),
    ]
    for category, rows in table.categories.items():
        parts += [
            f"Category {category}:",
            grid(["method", "subjects", "images", *names], _cells(rows, metrics)),
        ]
    if differences:
        parts += ["Paired differences, over the same subjects:", grid(["difference", *names], differences)]
    parts += ["Per subject:", grid(["subject", "method", *names], subjects)]
    made = [f"- {name}: {model}" for name, model in table.models.items()]
    made.append("- seeds: " + ", ".join(map(str, table.seeds)))
    made.append("- " + ", ".join(f"{name} {version}" for name, version in table.versions.items()))
    return "\n\n".join([*parts, "\n".join(made)]) + "\n"


def _cells(rows: Sequence[MethodRow], metrics: Sequence[str]) -> list[list[Any]]:
    return [
        [row.method, row.subjects, row.images, *(cell_of(row.metric.get(name)) for name in metrics)]
        for row in rows
    ]


def _number(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.3f}"


def cell_of(found: Interval | None, sign: str = "") -> str:
    """'.712 [.698, .731]'; without an interval where there is one subject."""
    if found is None:
        return "–"
    if found.low is None:
        return _number(found.mean, sign)
    return f"{_number(found.mean, sign)} [{_number(found.low, sign)}, {_number(found.high, sign)}]"


def grid(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)

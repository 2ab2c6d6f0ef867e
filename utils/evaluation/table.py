"""The table of an evaluation: every method's mean over subjects, with its interval, and the differences.

Only what one evaluator measured in one run stands in it.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from utils.evaluation.statistics import CONFIDENCE, mean_interval, paired_interval
from utils.scores.table import in_order, score_row

Scores = Mapping[tuple[str, str], Mapping[str, Any]]  # (subject, method) -> scores.json


def build_table(scores: Scores, subjects: Sequence[str], methods: Sequence[str]) -> dict[str, Any]:
    """As table.json holds it, without the run's seeds and versions.

    scores: {"metric": {name: value}, "models": {name: model id}, "images": count} of each subject and method.
    paired: the differences a - b, a after b in `methods`, over the subjects both have.
    """
    metrics = in_order(name for each in scores.values() for name in each["metric"])
    rows, paired = [], []
    for method in methods:
        mine = [scores[subject, method] for subject in subjects]
        values = {name: [s["metric"][name] for s in mine if name in s["metric"]] for name in metrics}
        rows.append(
            {
                "method": method,
                "subjects": len(mine),
                "images": sum(each["images"] for each in mine),
                "metric": {name: _interval(name, column) for name, column in values.items() if column},
            }
        )
    for b, a in combinations(methods, 2):
        differences = {}
        for name in metrics:
            one, two = (
                {s: v for s in subjects if (v := scores[s, m]["metric"].get(name)) is not None}
                for m in (a, b)
            )
            if one.keys() & two.keys():
                differences[name] = paired_interval(one, two)
        paired.append({"a": a, "b": b, "metric": differences})
    per_subject = [
        {"subject": subject, "method": method, "metric": dict(scores[subject, method]["metric"])}
        for subject in subjects
        for method in methods
    ]
    models = {
        name: each["models"][name] for name in metrics for each in scores.values() if name in each["models"]
    }
    return {
        "metrics": metrics,
        "models": models,
        "rows": rows,
        "paired": paired,
        "per_subject": per_subject,
        "confidence": CONFIDENCE,
        "interval": "t",
    }


def _interval(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """The mean of a score over subjects; a share stays between 0 and 1."""
    return mean_interval(values, bounds=(0, 1) if score_row(name).percent else None)


def as_markdown(table: Mapping[str, Any]) -> str:
    """The table for people: scores, differences, every subject, and what they were made with."""
    metrics, level = table["metrics"], f"{table['confidence']:.0%}".replace("%", " %")
    names = [name + (" ↓" if score_row(name).good < 0 else "") for name in metrics]
    intervals = any(cell["low"] is not None for row in table["rows"] for cell in row["metric"].values())
    spread = f" [{level} {table['interval']} interval over subjects]"
    scores = [
        [row["method"], row["subjects"], row["images"], *(_cell(row["metric"].get(name)) for name in metrics)]
        for row in table["rows"]
    ]
    differences = [
        [f"{pair['a']} − {pair['b']}", *(_cell(pair["metric"].get(name), "+") for name in metrics)]
        for pair in table["paired"]
    ]
    subjects = [
        [row["subject"], row["method"], *(_number(row["metric"].get(name)) for name in metrics)]
        for row in table["per_subject"]
    ]
    parts = [
        f"Mean over subjects{spread if intervals else ', of which there is one: no intervals'}; "
        "↓: low is good. Scores of other models or evaluators are not comparable with these.",
        _grid(["method", "subjects", "images", *names], scores),
    ]
    if differences:
        parts += ["Paired differences, over the same subjects:", _grid(["difference", *names], differences)]
    parts += ["Per subject:", _grid(["subject", "method", *names], subjects)]
    made = [f"- {name}: {model}" for name, model in table["models"].items()]
    made.append("- seeds: " + ", ".join(map(str, table.get("seeds", []))))
    made.append("- " + ", ".join(f"{name} {version}" for name, version in table.get("versions", {}).items()))
    return "\n\n".join([*parts, "\n".join(made)]) + "\n"


def _number(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.3f}"


def _cell(found: Mapping[str, float | None] | None, sign: str = "") -> str:
    """'.712 [.698, .731]'; without an interval where there is one subject."""
    if found is None or found["mean"] is None:
        return "–"
    if found["low"] is None:
        return _number(found["mean"], sign)
    return f"{_number(found['mean'], sign)} [{_number(found['low'], sign)}, {_number(found['high'], sign)}]"


def _grid(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)

"""results/report.html: one self-contained page that shows a benchmark run, its numbers and its pictures."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.evaluation.folder import BASE
from utils.report.curves import curve_section
from utils.report.folder import Results, read_results
from utils.report.markup import Markup, element, join
from utils.report.prompts import prompt_section
from utils.report.samples import sample_grids
from utils.report.tables import (
    best,
    confidence,
    difference_table,
    excludes_zero,
    has_intervals,
    label,
    metric,
    metric_notes,
    number,
    score_table,
    subject_table,
)
from utils.training.methods import METHODS

NAME = "report.html"
STYLE = Path(__file__).with_suffix(".css")
SHOWN_ELSEWHERE = frozenset({"subjects", "templates", "versions"})  # settings
SECTIONS = {
    "scores": "Scores",
    "differences": "Differences",
    "samples": "Samples",
    "training": "Training",
    "prompts": "Prompts",
    "subjects": "Subjects",
    "setup": "Setup",
}


def write_report(results: Path) -> Path:
    """Writes results/report.html from the folder's files, in one piece or not at all, and returns its path.

    Pictures pass through one at a time, so memory does not grow with their number.
    Raises UserError if `results` is not the folder of a finished run, or holds a file that cannot be read.
    """
    read = read_results(results)
    path = results / NAME
    unfinished = results / f".{NAME}.partial"
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.writelines(page(read))
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def page(results: Results) -> Iterator[Markup]:
    """The whole document in pieces."""
    title = title_of(results)
    yield join(
        Markup("<!doctype html>\n"),
        Markup('<html lang="en"><head>'),
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),  # or the browser asks the disk for one
        element("title", title),
        element("style", Markup(STYLE.read_text(encoding="utf-8"))),
        Markup("</head><body><main>"),
        element("header", element("h1", title), element("p", summary(results), class_="lead"), _contents()),
    )
    sections = {
        "scores": _scores,
        "differences": _differences,
        "samples": sample_grids,
        "training": curve_section,
        "prompts": prompt_section,
        "subjects": _subjects,
        "setup": _setup,
    }
    for name, title in SECTIONS.items():
        yield join(Markup(f'<section id="{name}">'), element("h2", title))
        body = sections[name](results)
        yield from [body] if isinstance(body, Markup) else body
        yield Markup("</section>\n")
    yield Markup("</main></body></html>\n")


def title_of(results: Results) -> str:
    """After the dataset, or what was evaluated in its place."""
    if results.settings.get("dataset"):
        return f"Personalisation benchmark: {results.settings['dataset']}"
    return f"Evaluation of {results.settings.get('source') or results.folder.name}"


def summary(results: Results) -> str:
    """The run in a sentence or two: methods, subjects, prompts, seeds, pictures, base."""
    trained = [label(method) for method in results.methods if method != BASE]
    subjects = results.subjects
    classes = len({subject["class"] for subject in subjects})
    prompts = sorted({len(subject["prompts"]) for subject in subjects})
    each = f"{prompts[0]}" if len(prompts) == 1 else f"{prompts[0]} to {prompts[-1]}"
    images = sum(row.get("images") or 0 for row in results.table["rows"])
    words = [
        f"{_listed(trained) or 'The base model alone'} on {_counted(len(subjects), 'subject')} of "
        f"{_counted(classes, 'class', 'classes')}, {each} prompts each"
    ]
    if results.seeds:
        words.append(f", {_counted(len(results.seeds), 'picture')} per prompt ({_range(results.seeds)})")
    words.append(f": {images:,} pictures in all.")
    base = results.settings.get("base")
    if base:
        words.append(f" The base model is {base}.")
    return "".join(words)


def _counted(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _range(seeds: list[int]) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return "seeds " + ", ".join(map(str, seeds))


def _listed(names: list[str]) -> str:
    """'A', 'A and B', 'A, B and C'."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _contents() -> Markup:
    links = [element("li", element("a", title, href=f"#{name}")) for name, title in SECTIONS.items()]
    return element("nav", element("ul", *links), aria_label="Contents")


def _scores(results: Results) -> Markup:
    notes = ["Arrows show which way is better."]
    if has_intervals(results):
        notes.append(f"Brackets hold {confidence(results)} bootstrap intervals over subjects.")
    else:
        notes.append("There are too few subjects for intervals over them.")
    if any(best(results, name) for name in results.metrics):
        notes.append(
            "Bold: better than every other trained method by a difference whose interval excludes 0."
        )
    if BASE in results.methods:
        notes.append(
            "The base model is the reference: it is given the class word, has never seen the subjects, and "
            "takes no part in the comparison."
        )
    else:
        notes.append("The base model was not sampled in this run, so there is no reference row.")
    return join(score_table(results), element("p", " ".join(notes), class_="note"), metric_notes(results))


def _differences(results: Results) -> Markup:
    if not results.table.get("paired"):
        return element("p", "The run compared no two methods, so there are no differences to show.")
    found = [
        element("li", sentence) for pair in results.table["paired"] if (sentence := _finding(results, pair))
    ]
    note = "The first minus the second, subject by subject. Bold: the interval excludes 0."
    if any(metric(name).percent for name in results.metrics):
        note += " pp: percentage points."
    listed = element("ul", *found, class_="findings") if found else None
    return join(listed, difference_table(results), element("p", note, class_="note"))


def _finding(results: Results, pair: dict[str, Any]) -> Markup | None:
    """What a pair of trained methods differs in, as a sentence; None for pairs with the base model."""
    if BASE in (pair["a"], pair["b"]):
        return None
    groups: dict[str, list[Markup]] = {"better": [], "worse": [], "different": []}
    for name in results.metrics:
        found = pair["metric"].get(name)
        if excludes_zero(found):
            look = metric(name)
            gain = look.good * found["mean"]
            way = "better" if gain > 0 else "worse" if gain < 0 else "different"
            difference = number(found["mean"], look.percent, signed=True)
            groups[way].append(join(look.label, " (", difference, ")"))
    head = f"{label(pair['a'])} against {label(pair['b'])}: "
    said = [join(f"{way} in ", _between(", ", parts)) for way, parts in groups.items() if parts]
    if not said:
        return join(head, "no difference whose interval excludes 0.")
    rest = len(results.metrics) - sum(map(len, groups.values()))
    return join(head, _between("; ", said), "; the other intervals include 0." if rest else ".")


def _between(separator: str, parts: list[Markup]) -> Markup:
    return join(*(join(separator if i else None, part) for i, part in enumerate(parts)))


def _subjects(results: Results) -> Markup:
    if not results.table.get("per_subject"):
        return element("p", "The table holds no scores subject by subject.")
    return subject_table(results)


def _setup(results: Results) -> Markup:
    """Methods, judging models, versions, and everything else that the run was told."""
    methods = [(label(name), METHODS[name].source) for name in results.methods if name in METHODS]
    models = [(metric(name).label, model) for name, model in results.table.get("models", {}).items()]
    versions = list((results.table.get("versions") or results.settings.get("versions") or {}).items())
    told = list(_flat({k: v for k, v in results.settings.items() if k not in SHOWN_ELSEWHERE}))
    blocks = [
        _pairs(title, rows)
        for title, rows in (
            ("Methods", methods),
            ("Judging models", models),
            ("Settings and hardware", told),
            ("Versions", versions),
        )
        if rows
    ]
    return element("div", *blocks, class_="setup")


def _flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as (name, text) rows."""
    for key, inner in value.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(inner, dict):
            yield from _flat(inner, f"{name}: ")
        elif isinstance(inner, list):
            yield name, ", ".join(map(str, inner)) or "none"
        elif isinstance(inner, bool):
            yield name, "yes" if inner else "no"
        else:
            yield name, "none" if inner is None or inner == "" else str(inner)


def _pairs(title: str, rows: list[tuple[str, Any]]) -> Markup:
    lines = [element("tr", element("th", key, scope="row"), element("td", str(text))) for key, text in rows]
    return element("table", element("caption", title), element("tbody", *lines), class_="pairs")

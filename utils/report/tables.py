"""The tables of a report: scores with their intervals, paired differences, subjects one by one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from utils.evaluation.folder import BASE
from utils.report.folder import Results
from utils.report.markup import Markup, element, join

LABELS = {
    BASE: "Base model",
    "classdiffusion": "ClassDiffusion",
    "custom_diffusion": "Custom Diffusion",
    "dreambooth": "DreamBooth",
    "textual_inversion": "Textual Inversion",
    "generated": "Given pictures",
    "two_stage": "Two-stage",
    "xti": "XTI",
}


@dataclass(frozen=True)
class Metric:
    """How a score is shown. good: +1 where more is better, -1 where less is, 0 where neither can be said."""

    label: str
    good: int
    meaning: str
    percent: bool = False

    @property
    def arrow(self) -> str:
        return {1: "↑", -1: "↓", 0: ""}[self.good]


METRICS = {
    "clip_t": Metric("CLIP-T", 1, "Does the picture show the prompt? Raw cosine of CLIP’s features."),
    "blip_t": Metric("BLIP-T", 1, "Does the picture show the prompt, as a BLIP model judges?"),
    "clip_i": Metric("CLIP-I", 1, "Does it look like the subject? Mean CLIP cosine to every real picture."),
    "dino_i": Metric("DINO-I", 1, "The same with DINO, which tells individuals of a class apart better."),
    "pres": Metric(
        "PRES", -1, "Forgetting: do pictures of the class alone resemble the subject? DINO cosine."
    ),
    "div": Metric("DIV", 1, "Variety: mean 1 − cosine between pictures of one subject and prompt."),
}
ROLES = {"table": "table", "thead": "rowgroup", "tbody": "rowgroup", "tr": "row", "td": "cell"}
COUNTS = {"subjects": "subjects", "images": "pictures"}  # of a table's row


def metric(name: str) -> Metric:
    """The look of a score by its name in table.json; one this file does not know has no good direction."""
    if name in METRICS:
        return METRICS[name]
    if name == "obeyed" or name.startswith("obeyed_"):
        word = name.removeprefix("obeyed").strip("_")
        if word in ("", "all"):
            return Metric("Obeyed", 1, "Share of pictures that show every word of their prompt.", True)
        return Metric(
            f"Obeyed: {word}",
            1,
            f"Share of pictures that are right about one thing that is named: {word}.",
            True,
        )
    return Metric(name, 0, "This report does not know the score, nor which way is better.")


def label(method: str) -> str:
    """'Custom Diffusion' for custom_diffusion; an unknown method keeps its name."""
    return LABELS.get(method, method)


def known(value: object) -> bool:
    """Whether `value` is a number that can be printed."""
    return isinstance(value, int | float) and math.isfinite(value)


def number(value: float | None, percent: bool = False, signed: bool = False, unit: bool = True) -> Markup:
    """The number as readers see it, within a <data> element that keeps all its digits; a dash for none."""
    if not known(value):
        return element("span", "–", class_="none", title="not measured")
    text = f"{100 * value:.1f}" if percent else f"{value:.3f}"
    end = " pp" if signed else " %"  # a difference of shares is in percentage points
    if float(text) == 0:
        text = text.lstrip("-")
    elif signed and value > 0:
        text = "+" + text
    return element("data", text.replace("-", "−") + (end if percent and unit else ""), value=repr(value))


def estimate(found: Mapping[str, float] | None, percent: bool, signed: bool = False) -> Markup:
    """A mean above its interval."""
    found = found or {}
    mean = number(found.get("mean"), percent, signed)
    if not (known(found.get("low")) and known(found.get("high"))):
        return mean
    low, high = (number(found[end], percent, signed, unit=False) for end in ("low", "high"))
    return join(mean, " ", element("span", "[", low, ", ", high, "]", class_="interval"))


def excludes_zero(found: Mapping[str, float] | None) -> bool:
    """Whether an interval lies on one side of 0."""
    found = found or {}
    ends = [found.get("low"), found.get("high")]
    return all(known(end) for end in ends) and ends[0] * ends[1] > 0


def has_intervals(results: Results) -> bool:
    """Whether any score has one; over a single subject there is none."""
    rows = results.table["rows"]
    return any(known((found or {}).get("low")) for row in rows for found in row["metric"].values())


def best(results: Results, name: str) -> str | None:
    """The trained method that is better than every other one by an interval without 0, if there is one."""
    good = metric(name).good
    means = {row["method"]: (row["metric"].get(name) or {}).get("mean") for row in results.table["rows"]}
    trained = {method: mean for method, mean in means.items() if method != BASE and known(mean)}
    if good == 0 or len(trained) < 2:
        return None
    winner = max(trained, key=lambda method: good * trained[method])
    pairs = {
        frozenset((pair["a"], pair["b"])): pair["metric"].get(name)
        for pair in results.table.get("paired", [])
    }
    others = [method for method in trained if method != winner]
    return winner if all(excludes_zero(pairs.get(frozenset((winner, other)))) for other in others) else None


def scrolling(table: Markup, name: str) -> Markup:
    """The table in a frame of its own that scrolls sideways where the page is narrow, by keyboard too."""
    return element("div", table, class_="scroll", tabindex="0", role="region", aria_label=name)


def score_table(results: Results) -> Markup:
    """Methods x metrics with their intervals; the best in bold where the differences say so."""
    models = results.table.get("models", {})
    heads = [_metric_head(name, models.get(name)) for name in results.metrics]
    sizes = {_size(row) for row in results.table["rows"]}
    winners = {name: best(results, name) for name in results.metrics}
    body = []
    for row in results.table["rows"]:
        cells = []
        for name in results.metrics:
            cell = estimate(row["metric"].get(name), metric(name).percent)
            cells.append(element("td", element("strong", cell) if winners[name] == row["method"] else cell))
        kind = "reference" if row["method"] == BASE else None
        size = None if len(sizes) == 1 else element("span", _size(row), class_="interval")
        title = join(label(row["method"]), size)
        body.append(element("tr", _row_head(title), *cells, class_=kind))
    head = element("tr", element("th", "Method", scope="col"), *heads)
    each = f" ({sizes.pop()} per method)" if len(sizes) == 1 else ""
    spread = f" and {confidence(results)} bootstrap interval" if has_intervals(results) else ""
    caption = f"Scores: mean over subjects{spread}{each}"
    return scrolling(_table(caption, head, body), "Scores")


def difference_table(results: Results) -> Markup:
    """Paired differences between methods, in bold where the interval excludes 0."""
    heads = [_metric_head(name, None) for name in results.metrics]
    body = []
    for pair in results.table["paired"]:
        cells = []
        for name in results.metrics:
            found = pair["metric"].get(name)
            cell = estimate(found, metric(name).percent, signed=True)
            cells.append(element("td", element("strong", cell) if excludes_zero(found) else cell))
        title = join(label(pair["a"]), element("br"), f"− {label(pair['b'])}")
        body.append(element("tr", _row_head(title), *cells))
    caption = f"Paired differences over the same subjects, with {confidence(results)} intervals"
    head = element("tr", element("th", "Difference", scope="col"), *heads)
    return scrolling(_table(caption, head, body), "Paired differences")


def confidence(results: Results) -> str:
    """'95 %'."""
    return f"{100 * results.table.get('confidence', 0.95):g} %"


def subject_table(results: Results) -> Markup:
    """Subjects x methods, every metric."""
    about = {subject["name"]: subject["class"] for subject in results.subjects}
    rows = results.table.get("per_subject", [])
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["subject"], []).append(row)
    body = []
    for name, members in groups.items():
        kind = element("span", about.get(name, ""), class_="minor")
        title = element("th", name, " ", kind, scope="rowgroup", rowspan=len(members))
        lines = []
        for i, row in enumerate(members):
            cells = [
                element("td", number(row["metric"].get(metric_name), metric(metric_name).percent))
                for metric_name in results.metrics
            ]
            lines.append(element("tr", None if i else title, _row_head(label(row["method"])), *cells))
        body.append(element("tbody", *lines))
    heads = [_metric_head(name, None) for name in results.metrics]
    head = element("tr", *(element("th", word, scope="col") for word in ("Subject", "Method")), *heads)
    caption = element("caption", "Scores of each subject")
    table = element("table", caption, element("thead", head), *body, class_="numbers subjects")
    return scrolling(table, "Scores of each subject")


def metric_notes(results: Results) -> Markup:
    """What each score asks."""
    entries = []
    for name in results.metrics:
        look = metric(name)
        term = element("dt", f"{look.label} {look.arrow}".strip())
        entries.append(element("div", term, element("dd", look.meaning)))
    return element("dl", *entries, class_="notes")


def _size(row: Mapping[str, Any]) -> str:
    """'12 subjects, 1,152 pictures'."""
    return ", ".join(f"{row[key]:,} {word}" for key, word in COUNTS.items() if known(row.get(key)))


def part(name: str, *children: str | None, **attributes: object) -> Markup:
    """A piece of a table whose rows the style sheet lays out as grids on narrow pages.

    Such rows lose their meaning for screen readers unless every role is spelled out.
    """
    role = ROLES[name] if name != "th" else f"{attributes['scope']}header".replace("col", "column")
    return element(name, *children, role=role, **attributes)


def _row_head(text: str) -> Markup:
    return element("th", text, scope="row")


def _metric_head(name: str, model: str | None) -> Markup:
    """The score's name, which way is good, and the model that judges."""
    look = metric(name)
    judge = element("span", _broken(model, "/", "wbr"), class_="model") if model else None
    way = {1: "higher is better", -1: "lower is better", 0: None}[look.good]
    arrow = element("span", look.arrow, title=way, role="img", aria_label=way) if way else None
    title = join(_broken(look.label, ": ", "br"), " " if arrow else None, arrow)
    return element("th", element("span", title, class_="metric"), judge, scope="col")


def _broken(text: str, after: str, how: str) -> Markup:
    """The text with an element, wbr or br, after each of its `after`."""
    first, *rest = text.split(after)
    return join(first, *(join(after, element(how), piece) for piece in rest))


def _table(caption: str, head: Markup, body: list[Markup]) -> Markup:
    parts = (element("caption", caption), element("thead", head), element("tbody", *body))
    return element("table", *parts, class_="numbers")

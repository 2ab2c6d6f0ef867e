"""The scores of a report prompt by prompt: which words were obeyed, or CLIP-T where nobody judged words."""

import re
from collections.abc import Mapping
from typing import Any

from utils.report.folder import Results
from utils.report.markup import Markup, element, join
from utils.report.tables import known, label, part, scrolling

ALL = "all"  # the entry of "obeyed" that stands for every word together
Scores = dict[str, list[float]]  # score -> [sum, count]


def situation(record: Mapping[str, Any]) -> str:
    """The scored prompt with its class words left open, so that subjects share it: 'a … in the snow'."""
    text = record["text"]
    for word in filter(None, record["class"].split("+")):
        text = re.sub(rf"\b{re.escape(word)}\b", "…", text, count=1)
    return text


def prompt_scores(results: Results) -> dict[str, dict[str, Scores]]:
    """situation -> method -> sums of clip_t and of each judged word, in the order of the prompts."""
    found: dict[str, dict[str, Scores]] = {}
    place: dict[str, int] = {}
    for subject in results.subjects:
        for method in results.methods:
            for record in results.records(method, subject["name"]):
                prompt = situation(record)
                place[prompt] = min(place.get(prompt, record["prompt_index"]), record["prompt_index"])
                _add(found.setdefault(prompt, {}).setdefault(method, {}), record)
    return dict(sorted(found.items(), key=lambda item: place[item[0]]))


def _add(scores: Scores, record: Mapping[str, Any]) -> None:
    for name, value in {"clip_t": record.get("clip_t"), **(record.get("obeyed") or {})}.items():
        if known(value):
            total = scores.setdefault(name, [0, 0])
            total[0] += value
            total[1] += 1


def prompt_section(results: Results) -> Markup:
    """The heat table, and a sentence on what it holds."""
    scores = prompt_scores(results)
    judged = any(ALL in methods for prompt in scores.values() for methods in prompt.values())
    if judged:
        note = (
            "Share of pictures that show what their prompt names, over subjects and seeds, as the recogniser "
            "reads them; “all” counts the pictures with every word right. “…” stands for the subject."
        )
        return join(
            element("p", note, class_="note"),
            scrolling(_words_overall(results, scores), "Words obeyed over all prompts"),
            scrolling(_words_by_prompt(results, scores), "Words obeyed prompt by prompt"),
        )
    if not any("clip_t" in methods for prompt in scores.values() for methods in prompt.values()):
        return element("p", "The records hold no score prompt by prompt, so there is no such table.")
    note = (
        "No recogniser judged these pictures, so there is no share of words obeyed; here is the mean CLIP-T "
        "of each prompt over subjects and seeds. The shade runs from the lowest value to the highest. "
        "“…” stands for the subject."
    )
    table = scrolling(_clip_t_by_prompt(results, scores), "CLIP-T prompt by prompt")
    return join(element("p", note, class_="note"), table)


def _words_overall(results: Results, scores: dict[str, dict[str, Scores]]) -> Markup:
    """Words x methods over all prompts."""
    sums: dict[str, dict[str, list[float]]] = {}
    for methods in scores.values():
        for method, values in methods.items():
            for word, (hits, count) in values.items():
                total = sums.setdefault(word, {}).setdefault(method, [0, 0])
                total[0], total[1] = total[0] + hits, total[1] + count
    sums.pop("clip_t", None)
    rows = []
    for word in _ordered(sums):
        cells = []
        for method in results.methods:
            hits, count = sums[word].get(method, (0, 0))
            share = hits / count if count else None
            cells.append(_heat(share, _percent(share), element("span", f" of {count:,}", class_="minor")))
        rows.append(part("tr", part("th", _name(word), scope="row"), *cells))
    return _table(results, "Words obeyed over all prompts", "Word", rows)


def _words_by_prompt(results: Results, scores: dict[str, dict[str, Scores]]) -> Markup:
    """Prompts x methods, a chip for each word that the prompt names."""
    rows = []
    for prompt, methods in scores.items():
        cells = []
        for method in results.methods:
            values = methods.get(method, {})
            chips = []
            for word in _ordered(values):
                share = values[word][0] / values[word][1]
                look = "chip all" if word == ALL else "chip"
                text = (element("b", f"{100 * share:.0f}"), " ", _name(word))
                chips.append(element("span", *text, class_=look, style=f"--v:{share:.3f}"))
            cells.append(part("td", element("div", *chips, class_="chips")))
        rows.append(part("tr", part("th", prompt, scope="row"), *cells))
    return _table(results, "Words obeyed prompt by prompt, per cent", "Prompt", rows, "by-prompt")


def _clip_t_by_prompt(results: Results, scores: dict[str, dict[str, Scores]]) -> Markup:
    """Prompts x methods, shaded between the lowest and the highest mean."""
    means = {
        (prompt, method): values["clip_t"][0] / values["clip_t"][1]
        for prompt, methods in scores.items()
        for method, values in methods.items()
        if "clip_t" in values
    }
    low, high = min(means.values()), max(means.values())
    rows = []
    for prompt in scores:
        cells = []
        for method in results.methods:
            mean = means.get((prompt, method))
            shade = None if mean is None else (mean - low) / ((high - low) or 1)
            cells.append(_heat(shade, "–" if mean is None else f"{mean:.3f}"))
        rows.append(part("tr", part("th", prompt, scope="row"), *cells))
    return _table(results, "CLIP-T prompt by prompt", "Prompt", rows)


def _ordered(words: Mapping[str, object]) -> list[str]:
    """The judged words: all together first, then the class, then the others by name."""
    judged = (word for word in words if word != "clip_t")
    return sorted(judged, key=lambda word: (word != ALL, word != "class", word))


def _name(word: str) -> str:
    return word.replace("_", " ")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def _heat(share: float | None, *text: str) -> Markup:
    """A cell shaded by `share` in [0, 1]."""
    return part("td", *text, class_="heat", style=None if share is None else f"--v:{share:.3f}")


def _table(
    results: Results, caption: str, corner: str, rows: list[Markup], look: str | None = None
) -> Markup:
    heads = [part("th", label(method), scope="col") for method in results.methods]
    parts = (
        element("caption", caption),
        part("thead", part("tr", part("th", corner, scope="col"), *heads)),
        part("tbody", *rows),
    )
    columns = f"--columns:{len(heads)}"
    return part("table", *parts, class_=f"prompts {look or ''}".strip(), style=columns)

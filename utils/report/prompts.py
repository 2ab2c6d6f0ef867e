"""The scores of a report prompt by prompt: which words were obeyed, or CLIP-T where nothing judged words."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from utils.report.folder import Results
from utils.report.words import known

ALL = "all"  # the entry of "obeyed" that stands for every word together
CLIP_T = "clip_t"
Scores = dict[str, list[float]]  # score -> [sum, count]


def situation(record: Mapping[str, Any]) -> str:
    """The scored prompt with its class words left open, so that subjects share it: 'a … in the snow'."""
    text = record["text"]
    for word in filter(None, record["class"].split("+")):
        text = re.sub(rf"\b{re.escape(word)}\b", "…", text, count=1)
    return text


def prompt_scores(results: Results) -> dict[str, dict[str, Scores]]:
    """situation -> method -> sums of clip_t and of each judged word, in the order of the prompts."""
    scores: dict[str, dict[str, Scores]] = {}
    place: dict[str, int] = {}
    for subject in results.subjects:
        for method in results.methods:
            for record in results.records(method, subject["name"]):
                prompt = situation(record)
                place[prompt] = min(place.get(prompt, record["prompt_index"]), record["prompt_index"])
                values = {CLIP_T: record.get(CLIP_T), **(record.get("obeyed") or {})}
                sums = scores.setdefault(prompt, {}).setdefault(method, {})
                for name, value in values.items():
                    if known(value):
                        _add(sums, name, value, 1)
    return dict(sorted(scores.items(), key=lambda item: place[item[0]]))


def words_overall(scores: Mapping[str, Mapping[str, Scores]]) -> dict[str, Scores]:
    """word -> method -> [hits, count] over all prompts; {} where no words were judged."""
    sums: dict[str, Scores] = {}
    for methods in scores.values():
        for method, values in methods.items():
            for word in ordered(values):
                _add(sums.setdefault(word, {}), method, *values[word])
    return {word: sums[word] for word in ordered(sums)} if ALL in sums else {}


def clip_t_means(scores: Mapping[str, Mapping[str, Scores]]) -> dict[tuple[str, str], float]:
    """(situation, method) -> mean CLIP-T."""
    return {
        (prompt, method): values[CLIP_T][0] / values[CLIP_T][1]
        for prompt, methods in scores.items()
        for method, values in methods.items()
        if CLIP_T in values
    }


def ordered(words: Iterable[str]) -> list[str]:
    """The judged words: all together first, then the class, then the others by name."""
    return sorted((word for word in words if word != CLIP_T), key=lambda w: (w != ALL, w != "class", w))


def _add(sums: Scores, name: str, value: float, count: float) -> None:
    total = sums.setdefault(name, [0, 0])
    total[0], total[1] = total[0] + value, total[1] + count

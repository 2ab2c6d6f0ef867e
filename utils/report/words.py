"""Numbers, names and sentences of a report, from its results."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from utils.common.words import counted
from utils.config.methods import METHODS
from utils.evaluation.folder import BASE
from utils.report.folder import Results
from utils.scores.table import score_row

LABELS = {
    BASE: "Base model",
    "generated": "Given images",
    "classdiffusion": "ClassDiffusion",
    "custom_diffusion": "Custom Diffusion",
    "dreambooth": "DreamBooth",
    "textual_inversion": "Textual Inversion",
}
Interval = Mapping[str, float | None]  # mean, low, high


def label(method: str) -> str:
    """'Custom Diffusion' for custom_diffusion: the title of its row, else its name in words."""
    title = getattr(METHODS.get(method), "title", None)
    return title or LABELS.get(method) or method.replace("_", " ")


def known(value: object) -> bool:
    """Whether `value` is a number that can be printed."""
    return isinstance(value, int | float) and math.isfinite(value)


def written(value: float, percent: bool = False, signed: bool = False, unit: bool = True) -> str:
    """The number as readers see it: '0.211', '+0.100', '24.8 %', '+10.9 pp' for a difference of shares."""
    text = f"{100 * value:.1f}" if percent else f"{value:.3f}"
    if float(text) == 0:
        text = text.lstrip("-")
    elif signed and value > 0:
        text = "+" + text
    return text.replace("-", "−") + ((" pp" if signed else " %") if percent and unit else "")


def excludes_zero(found: Interval | None) -> bool:
    """Whether an interval lies on one side of 0."""
    ends = [(found or {}).get(end) for end in ("low", "high")]
    return all(map(known, ends)) and ends[0] * ends[1] > 0


def has_intervals(rows: list[dict[str, Any]]) -> bool:
    """Whether any score of the rows has one; over a single subject there is none."""
    return any(known((found or {}).get("low")) for row in rows for found in row["metric"].values())


def best(results: Results, name: str) -> str | None:
    """The trained method that is better than every other one by an interval without 0, if there is one."""
    good = score_row(name).good
    means = {row["method"]: (row["metric"].get(name) or {}).get("mean") for row in results.table["rows"]}
    trained = {method: mean for method, mean in means.items() if method != BASE and known(mean)}
    if good == 0 or len(trained) < 2:
        return None
    winner = max(trained, key=lambda method: good * trained[method])
    pairs = {frozenset((p["a"], p["b"])): p["metric"].get(name) for p in results.table.get("paired", [])}
    others = [method for method in trained if method != winner]
    return winner if all(excludes_zero(pairs.get(frozenset((winner, other)))) for other in others) else None


def certain(results: Results, pair: Mapping[str, Any]) -> dict[str, list[str]] | None:
    """In what two trained methods differ for sure: "better", "worse" or "different" -> scores with their
    differences. None where the base is one of them, or where there are no intervals."""
    if BASE in (pair["a"], pair["b"]) or not has_intervals([pair]):
        return None
    ways: dict[str, list[str]] = {"better": [], "worse": [], "different": []}
    for row, interval in ((score_row(name), pair["metric"].get(name)) for name in results.metrics):
        if excludes_zero(interval):
            gain = row.good * interval["mean"]
            difference = written(interval["mean"], row.percent, signed=True)
            ways["better" if gain > 0 else "worse" if gain < 0 else "different"].append(
                f"{row.label} ({difference})"
            )
    return {way: scores for way, scores in ways.items() if scores}


def title_of(results: Results) -> str:
    """After the dataset, or what was evaluated in its place."""
    if results.settings.get("dataset"):
        return f"Personalisation benchmark: {results.settings['dataset']}"
    return f"Evaluation of {results.settings.get('source') or results.folder.name}"


def summary(results: Results) -> str:
    """The run in a sentence or two: methods, subjects, prompts, seeds, images, base."""
    trained = [label(method) for method in results.methods if method != BASE]
    classes = {subject["class"] for subject in results.subjects} - {""}
    counts = [len(subject["prompts"]) for subject in results.subjects]
    low, high = min(counts), max(counts)
    images = [row.get("images") or 0 for row in results.table["rows"]]
    text = f"{listed(trained) or 'The base model alone'} on {counted(len(results.subjects), 'subject')}"
    text += f" of {counted(len(classes), 'class', 'classes')}" if classes else ""
    text += f", {counted(low, 'prompt') if low == high else f'{low} to {high} prompts'} each"
    if all(count == sum(counts) * len(results.seeds) for count in images):  # images from elsewhere may differ
        text += f", {counted(len(results.seeds), 'image')} per prompt ({_seeds(results.seeds)})"
    base = results.settings.get("base")
    return f"{text}: {counted(sum(images), 'image')} in all." + (
        f" The base model is {base}." if base else ""
    )


def _seeds(seeds: list[int]) -> str:
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))


def listed(names: list[str]) -> str:
    """'A', 'A and B', 'A, B and C'."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as (name, text) rows."""
    for key, inner in value.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(inner, dict):
            yield from flat(inner, f"{name}: ")
        elif isinstance(inner, list):
            yield name, ", ".join(map(str, inner)) or "none"
        elif isinstance(inner, bool):
            yield name, "yes" if inner else "no"
        else:
            yield name, "none" if inner is None or inner == "" else str(inner)

"""What the attention of concepts and their base comes to: means by what a word is in its prompt, charts."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from utils.analysis.attention_maps import FILLERS, Record, Watched
from utils.analysis.charts import Bars, save_bars, save_heat

TOKEN, CLASS, OBJECTS, REST = "concept token", "class word", "other objects", "other words"
CHANCE = {
    "share": "chance_share",
    "inside": "area",
    "text_attention": "chance_text_attention",
}  # measure -> what it is by chance
Means = dict[str, dict[str, float]]  # measure -> role of a word -> mean


def role_of(record: Record, word: str) -> str:
    """What a word is in its prompt."""
    if word in (record["token"], record["class"]):
        return TOKEN if word == record["token"] else CLASS
    return OBJECTS if word in record["area"] else REST


def means(records: Sequence[Record]) -> Means:
    """Of a model's records: measure -> role -> mean over words and records.

    share is of all words of a role together, so that the roles sum to 1.
    """
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        for key in ("share", "chance_share"):
            parts: dict[str, float] = defaultdict(float)
            for word, part in record[key].items():
                parts[role_of(record, word)] += part
            for role, part in parts.items():
                values[key][role].append(part)
        for key in ("inside", "area", "text_attention", "chance_text_attention"):
            for word, value in record[key].items():
                values[key][role_of(record, word)].append(value)
        for word, each in record["kl_to_context"].items():
            values["kl_to_context"][role_of(record, word)] += each.values()
    return {key: {r: float(np.mean(v)) for r, v in roles.items()} for key, roles in values.items()}


def draw_bars(by_model: dict[str, Means], stem: Path) -> list[Path]:
    """Shares of attention, attention inside the own mask with chance, and KL; a bar for each model."""
    panels = []
    for key, title, y_label in (
        ("share", "Share of the words’ attention; dashed: equal for all tokens", "share"),
        ("inside", "Attention inside the word’s own object; dashed: its area", "share"),
        (
            "text_attention",
            "Text encoder: what later words attend to the word; dashed: to all alike",
            "share",
        ),
        ("kl_to_context", "Symmetric KL of the word’s map against the other words’", "nats"),
    ):
        present = {role for each in by_model.values() for role in each.get(key, {})}
        roles = [role for role in (TOKEN, CLASS, OBJECTS, REST) if role in present]
        if not roles:
            continue
        groups = {r: [each.get(key, {}).get(r, float("nan")) for each in by_model.values()] for r in roles}
        chance = {r: a for each in by_model.values() for r, a in each.get(CHANCE.get(key), {}).items()}
        panels.append(Bars(title, y_label, groups, list(by_model), chance))
    return save_bars(panels, stem)


def draw_heat(rows: Iterable[tuple[str, Image.Image, dict[str, Tensor]]], stem: Path) -> list[Path]:
    """A row for each (model, image, words' maps): the image, and the map of every word that names a thing."""
    cells = []
    for name, image, words in rows:
        shown = {word: each.cpu().numpy() for word, each in words.items() if word not in FILLERS}
        cells.append((name, [("image", np.asarray(image) / 255), *shown.items()]))
    return save_heat(cells, stem)


def summarise(watched: dict[str, Watched], folder: Path) -> tuple[dict[str, Any], list[Path]]:
    """{"scenes", "samples"}: every model's records and their means; and the charts: bars, heat maps of the
    first image."""
    results, files = {}, []
    for kind in ("scenes", "samples"):
        records = {name: [record for record, _, _ in each[kind]] for name, each in watched.items()}
        if not all(records.values()):
            continue
        averages = {name: means(each) for name, each in records.items()}
        results[kind] = {"means": averages, "records": records}
        files += draw_bars(averages, folder / kind)
        rows = [(name, image, maps) for name, each in watched.items() for _, maps, image in each[kind][:1]]
        files += draw_heat(rows, folder / f"{kind}_heat")
    return results, files


def line_of(averages: Means) -> str:
    """'share: concept token 12.3%, class word 4.5%, …; inside: …'."""
    parts = []
    for key, roles in averages.items():
        if key.startswith("chance_"):
            continue
        form = ".2f" if key == "kl_to_context" else ".1%"
        parts.append(f"{key}: " + ", ".join(f"{role} {value:{form}}" for role, value in roles.items()))
    return "; ".join(parts)

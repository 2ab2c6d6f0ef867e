"""The sample grids of a report: rows prompts, columns methods, the same seeds, every image a data URI."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from utils.common.images import open_image
from utils.evaluation.folder import BASE
from utils.report.folder import Results
from utils.report.words import label

PIXELS = 60_000_000  # of all samples together: about 15 MB of HTML
SIDES = (256, 192, 128)  # what large images shrink to, the first that lets every prompt be shown
SMALL = 128  # images up to this side keep their pixels and are shown enlarged
SEEDS = 2  # images per cell at most
OPEN_SUBJECTS, OPEN_PROMPTS = 4, 3


@dataclass(frozen=True)
class Plan:
    """What a report shows of the samples, so that its file stays of moderate size."""

    side: int  # longest side in pixels
    seeds: int  # per prompt and method
    prompts: int  # per subject


@dataclass(frozen=True)
class Cell:
    """An image in its place; without a file, `absent` says why."""

    file: Path | None
    alt: str = ""
    absent: str = ""


def make_plan(results: Results, native_side: int, budget: int = PIXELS) -> Plan:
    """The largest images, then the most seeds, then the most prompts that `budget` pixels hold."""
    counts = [len(subject["prompts"]) for subject in results.subjects]
    cells = sum(counts) * len(results.methods)
    sides = [min(side, native_side) for side in SIDES]
    side = next((side for side in sides if cells * side**2 <= budget), sides[-1])
    seeds = max(1, min(SEEDS, len(results.seeds), budget // max(1, cells * side**2)))
    prompts = max(counts)
    while prompts > 1 and sum(min(n, prompts) for n in counts) * len(results.methods) * side**2 > budget:
        prompts -= 1
    return Plan(side, seeds, prompts)


def data_uri(path: Path, side: int) -> tuple[str, tuple[int, int]]:
    """The image as a JPEG data URI, no side longer than `side`, and its (width, height)."""
    image = open_image(path)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    small = max(image.size) <= SMALL
    # Few pixels that are shown enlarged need their colours at full resolution.
    settings = {"quality": 90, "subsampling": 0} if small else {"quality": 82}
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", optimize=True, **settings)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), image.size


def evenly(count: int, of: int) -> list[int]:
    """`count` indices spread over range(of), the first and the last among them."""
    count = min(count, of)
    return [round(i * (of - 1) / max(1, count - 1)) for i in range(count)]


def opened(subjects: list[dict[str, Any]]) -> list[str]:
    """The subjects that stand open: the first of each class, then the others, in order."""
    first = {subject["class"]: subject["name"] for subject in reversed(subjects)}
    names = [subject["name"] for subject in subjects if first[subject["class"]] == subject["name"]]
    names += [subject["name"] for subject in subjects if subject["name"] not in names]
    return names[:OPEN_SUBJECTS]


def native_side(results: Results) -> int | None:
    """The longest side of the first sample that is there; None if there is none."""
    for subject in results.subjects:
        for method in results.methods:
            for record in results.records(method, subject["name"]):
                path = results.image(record)
                if path.is_file():
                    with Image.open(path) as image:
                        return max(image.size)
    return None


def sample_subjects(results: Results, plan: Plan) -> Iterator[dict[str, Any]]:
    """Each subject, those that stand open first, with its real images and its grids of cells."""
    names = opened(results.subjects)
    for subject in sorted(results.subjects, key=lambda s: s["name"] not in names):
        records: dict[int, dict[tuple[str, int], dict[str, Any]]] = {}
        for method in results.methods:
            for record in results.records(method, subject["name"]):
                records.setdefault(record["prompt_index"], {})[method, record["seed"]] = record
        shown = [sorted(records)[i] for i in evenly(plan.prompts, len(records))]
        few = [shown[i] for i in evenly(OPEN_PROMPTS, len(shown))]
        yield {
            "name": subject["name"],
            "class": subject["class"],
            "open": subject["name"] in names,
            "real": results.real_images(subject),
            "rows": [_row(results, records[index], plan) for index in few],
            "more": [_row(results, records[index], plan) for index in shown if index not in few],
        }


def _row(results: Results, records: dict[tuple[str, int], dict[str, Any]], plan: Plan) -> dict[str, Any]:
    """One prompt: its words, and a list of cells for each method."""
    texts = {method: record["prompt"] for (method, _), record in records.items()}
    text = next((texts[method] for method in texts if method != BASE), texts.get(BASE))
    seeds = sorted({seed for _, seed in records})[: plan.seeds]
    cells = [[_cell(results, records.get((m, seed)), seed) for seed in seeds] for m in results.methods]
    return {"prompt": text, "cells": cells}


def _cell(results: Results, record: dict[str, Any] | None, seed: int) -> Cell:
    if record is None:
        return Cell(None, absent="not drawn")
    path = results.image(record)
    alt = f"{label(record['method'])}, seed {seed}: {record['prompt']}"
    return Cell(path, alt) if path.is_file() else Cell(None, absent="file missing")

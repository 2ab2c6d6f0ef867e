"""A results folder made by hand: three methods, two subjects, three prompts, two seeds, 8 px images."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

METHODS = ("base", "custom_diffusion", "classdiffusion")
SUBJECTS = ({"name": "rex", "class": "dog", "live": True}, {"name": "mia", "class": "cat", "live": True})
PROMPTS = ("a photo of a {} in the snow", "a photo of a {} wearing a hat", "a {} on the beach & <b>bold</b>")
WORDS = ("place", "worn", "place")
METRICS = ("clip_t", "clip_i", "pres", "obeyed_all")
SEEDS = (0, 1)
STEPS = 40


def write_results(folder: Path, obeyed: bool = True, methods: tuple[str, ...] = METHODS) -> Path:
    """The whole folder as scripts.evaluate leaves it; every number in it is another one."""
    subjects = []
    for number, subject in enumerate(SUBJECTS):
        pictures = folder / "dataset" / subject["name"]
        pictures.mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (12, 10), (250, 40 * i, 90 * number)).save(pictures / f"{i}.png")
        paths = [str(path) for path in sorted(pictures.iterdir())]
        subjects.append({**subject, "folder": str(pictures), "pictures": paths, "prompts": list(PROMPTS)})
        for method in methods:
            _write_method(folder / method / subject["name"], folder, method, subject, obeyed)
    _dump(folder / "subjects.json", subjects)
    settings = {"dataset": "toon", "methods": list(methods), "seeds": list(SEEDS), "base": "data/toon/sd"}
    _dump(folder / "settings.json", {**settings, "hardware": {"cpu": "2 cores <AMX>"}, "prior": False})
    _dump(folder / "table.json", make_table(methods))
    return folder


def make_table(methods: tuple[str, ...]) -> dict[str, Any]:
    """Means rise by method; custom_diffusion and classdiffusion differ for sure in clip_t and pres only."""
    sure = {"clip_t", "pres"}
    return {
        "metrics": list(METRICS),
        "models": {"clip_t": "data/toon/clip", "clip_i": "data/toon/clip", "pres": "data/toon/dino"},
        "rows": [
            {
                "method": method,
                "subjects": 2,
                "images": 12,
                "metric": {
                    name: interval(0.2111 + 0.1 * m + 0.0123 * i, 0.03) for i, name in enumerate(METRICS)
                },
            }
            for m, method in enumerate(methods)
        ],
        "paired": [
            {
                "a": b,
                "b": a,
                "metric": {
                    name: interval(0.1004 + 0.003 * i, 0.02 if name in sure else 0.4)
                    for i, name in enumerate(METRICS)
                },
            }
            for k, a in enumerate(methods)
            for b in methods[k + 1 :]
        ],
        "per_subject": [
            {
                "subject": subject["name"],
                "method": method,
                "metric": {name: 0.3007 + 0.1 * m + 0.01 * s + 0.0011 * i for i, name in enumerate(METRICS)},
            }
            for s, subject in enumerate(SUBJECTS)
            for m, method in enumerate(methods)
        ],
        "seeds": list(SEEDS),
        "versions": {"torch": "2.13.0"},
        "confidence": 0.95,
    }


def interval(mean: float, half: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _write_method(folder: Path, results: Path, method: str, subject: dict, obeyed: bool) -> None:
    """Images, records and, for a trained method, a log."""
    (folder / "images").mkdir(parents=True)
    token = "" if method == "base" else "<new1> "
    records = []
    for index, prompt in enumerate(PROMPTS):
        for seed in SEEDS:
            path = folder / "images" / f"{index:02d}_{seed}.png"
            shade = (60 * METHODS.index(method), 80 * index, 200 * seed)
            Image.new("RGB", (8, 8), shade).save(path)
            record = {
                "method": method,
                "subject": subject["name"],
                "class": subject["class"],
                "prompt_index": index,
                "prompt": prompt.format(token + subject["class"]),
                "text": prompt.format(subject["class"]),
                "seed": seed,
                "image": str(path.relative_to(results)),
                "clip_t": 0.2 + 0.05 * index + 0.01 * METHODS.index(method),
            }
            if obeyed:
                right = seed == 0 or method == "classdiffusion"
                record["obeyed"] = {"class": True, WORDS[index]: right, "all": right}
            records.append(record)
    _write_lines(folder / "records.jsonl", records)
    if method != "base":
        (folder / "concept").mkdir()
        drift = 0.001 if method == "classdiffusion" else 0.01
        lines = [
            {"step": s, "loss_denoise": 0.5 + 0.2 * (-1) ** s, "loss_spl": drift * s, "loss": 0.5, "lr": 1e-4}
            for s in range(1, STEPS + 1)
        ]
        _write_lines(folder / "concept" / "log.jsonl", lines)


def _dump(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def _write_lines(path: Path, values: list[dict]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))

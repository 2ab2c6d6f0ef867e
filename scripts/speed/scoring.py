"""Time and memory of the scores, on renders of toon."""

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from scripts.toon.benchmark_set import Obedience, benchmark, draw
from scripts.toon.models.training import scenes
from scripts.toon.world.render import render
from utils.bases.registry import base_row
from utils.common.errors import UserError, short
from utils.common.images import save_png
from utils.evaluation.config import split
from utils.evaluation.scoring import Scorer, check_metrics, needed_kinds, score_subject
from utils.evaluation.shots import class_shots, shots_of
from utils.scores.table import SCORES

if TYPE_CHECKING:
    from scripts.benchmark import EvaluateFlags

SIDE = 64  # of toon's images
TOON = base_row("toon")


def benchmark_evaluate(config: "EvaluateFlags") -> None:
    """Seconds per metric, and whether memory grows with the images: a quarter of them first, then all."""
    models, images = config.models, config.images
    known = config.known_metrics
    metrics = split(config.metrics) or [name for name in known if SCORES[name].judge in (None, *models)]
    if unknown := [name for name in metrics if name not in known]:
        raise UserError(f"unknown metric '{short(unknown[0])}'; choose from {', '.join(known)}")
    check_metrics(metrics, models, config.blip_head)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    spent: dict[str, float] = defaultdict(float)
    with TemporaryDirectory() as folder:
        results = Path(folder)
        (subject,) = benchmark(results / "images", ["dog_0"])
        draw([subject])
        for count in sorted({-(-images // 4), images}):
            scorer = Scorer(metrics, models, config.blip_head, device, Obedience())
            for kind in needed_kinds(metrics):
                scorer.model(kind)  # loaded before the clock starts
            spent.clear()
            _time_parts(scorer, spent)
            seconds = _score_renders(results, subject, count, scorer)
            print(f"{count} images: {seconds:.1f} s, {count / seconds:.1f} images/s, peak {peak()}")
    for part, seconds in sorted(spent.items(), key=lambda entry: -entry[1]):
        print(f"  {part}: {seconds:.1f} s")
    print(f"  files, and the rest: {seconds_left(spent, seconds):.1f} s")


def seconds_left(spent: dict[str, float], total: float) -> float:
    return max(0.0, total - sum(spent.values()))


def _score_renders(results: Path, subject: Any, count: int, scorer: Scorer) -> float:
    """Renders `count` images and 20 of the class, then scores them; seconds of the scoring."""
    seeds = range(max(2, -(-count // len(subject.templates))))  # DIV needs two of a prompt
    shots = shots_of(subject, f"renders-{count}", seeds)[:count]
    (of_class,) = class_shots(subject, f"renders-{count}", range(20))
    drawn = [*shots, *of_class]
    for shot, scene in zip(tqdm(drawn, "rendering"), scenes("benchmark", len(drawn)), strict=True):
        (results / shot.image).parent.mkdir(parents=True, exist_ok=True)
        save_png(render(scene, SIDE), results / shot.image, {})
    folder = results / f"renders-{count}" / subject.name
    start = time.perf_counter()
    score_subject(results, folder, subject, shots, [[results / shot.image for shot in of_class]], scorer)
    return time.perf_counter() - start


def _time_parts(scorer: Scorer, spent: dict[str, float]) -> None:
    """Adds to `spent` what each model takes; the scorer works as before."""

    def timed(name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        found = call(*args, **kwargs)
        spent[name] += time.perf_counter() - start
        return found

    calls = {
        "clip": (
            ("image_features", "CLIP images (CLIP-T, CLIP-I)"),
            ("text_features", "CLIP prompts (CLIP-T)"),
        ),
        "dino": (("image_features", "DINO (DINO-I, PRES, DIV)"),),
        "blip": (("scores", "BLIP (BLIP-T)"),),
        "siglip": (("image_features", "SigLIP images"), ("text_features", "SigLIP prompts")),
    }
    for kind in needed_kinds(scorer.metrics):
        model = scorer.model(kind)
        for method, name in calls[kind]:
            setattr(model, method, partial(timed, name, getattr(model, method)))
    judge = scorer.word_judge
    scorer.word_judge = _Timed(partial(timed, "recogniser (words obeyed)", judge), judge.name)


class _Timed:
    """A judge whose calls are timed."""

    def __init__(self, call: Callable[..., Any], name: str):
        self.call, self.name = call, name

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)


def peak() -> str:
    """The most memory this process has held so far, and the most of its GPU's."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    line = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20:.0f} MiB"
    if torch.cuda.is_available():
        line += f", GPU {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB"
    return line

"""Time and memory of what this repository does, on this machine.

python -m scripts.benchmark evaluate    1,000 toon pictures through every metric
python -m scripts.benchmark train       a training step on toon, and a picture of inference
"""

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tqdm import tqdm

import train_classdiffusion
from scripts.toon.benchmark_set import Obedience, benchmark, draw
from scripts.toon.render import render
from scripts.toon.training import scenes
from utils.bases.registry import REPOSITORY, base_row
from utils.bases.sd import load_pipeline
from utils.errors import UserError, exit_on_user_error, short
from utils.evaluation.scoring import Scorer, check_metrics, needed_kinds, score_subject
from utils.evaluation.shots import class_shots, shots_of
from utils.flags import check_fields, option, parse
from utils.images import save_png
from utils.sampling.images import sample
from utils.scores.table import SCORES
from utils.training.settings import read_setting

SIDE = 64  # of toon's pictures
TOON = base_row("toon")


@dataclass(frozen=True)
class BenchmarkConfig:
    command: str = option(MISSING, "what to time", choices=("evaluate", "train"), positional=True)
    pictures: int | None = option(None, "images: scored (default: 1000), or sampled (default: 8)", minimum=1)
    metrics: str = option(",".join(SCORES), "evaluate: joined by commas")
    clip: str = option(TOON.judges["clip"], "evaluate: CLIP of CLIP-T and CLIP-I")
    dino: str = option(TOON.judges["dino"], "evaluate: DINO of DINO-I, PRES and DIV")
    blip: str = option(TOON.judges["blip"], "evaluate: BLIP of BLIP-T")
    blip_head: str = option("itc", "evaluate: itc or itm")
    steps: int = option(20, "train: training steps that are timed", minimum=1)
    num_inference_steps: int = option(TOON.sampling.num_inference_steps, "train: of sampling", minimum=1)

    def __post_init__(self) -> None:
        check_fields(self)
        for each in fields(self):
            only = each.metadata["help"].partition(":")[0]
            other = only in ("evaluate", "train") and only != self.command
            if other and getattr(self, each.name) != each.default:
                raise UserError(f"--{each.name} has no effect on {self.command}: leave it out")


def main(argv: list[str] | None = None) -> None:
    config = parse(BenchmarkConfig, argv, __doc__)
    benchmark_evaluate(config) if config.command == "evaluate" else benchmark_train(config)


def benchmark_evaluate(config: BenchmarkConfig) -> None:
    """Seconds per metric, and whether memory grows with the pictures: a quarter of them first, then all."""
    metrics, models = config.metrics.split(","), {kind: getattr(config, kind) for kind in TOON.judges}
    pictures = config.pictures or 1000
    if unknown := [name for name in metrics if name not in SCORES]:
        raise UserError(f"unknown metric '{short(unknown[0])}'; choose of {', '.join(SCORES)}")
    check_metrics(metrics, models, config.blip_head)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    spent: dict[str, float] = defaultdict(float)
    with TemporaryDirectory() as folder:
        results = Path(folder)
        (subject,) = benchmark(results / "pictures", ["dog_0"])
        draw([subject])
        for count in sorted({-(-pictures // 4), pictures}):
            scorer = Scorer(metrics, models, config.blip_head, device, Obedience())
            for kind in needed_kinds(metrics):
                scorer.model(kind)  # loaded before the clock starts
            spent.clear()
            _time_parts(scorer, spent)
            seconds = _score_renders(results, subject, count, scorer)
            print(f"{count} pictures: {seconds:.1f} s, {count / seconds:.1f} images/s, peak {peak()}")
    for part, seconds in sorted(spent.items(), key=lambda entry: -entry[1]):
        print(f"  {part}: {seconds:.1f} s")
    print(f"  files, and the rest: {seconds_left(spent, seconds):.1f} s")


def seconds_left(spent: dict[str, float], total: float) -> float:
    return max(0.0, total - sum(spent.values()))


def _score_renders(results: Path, subject: Any, count: int, scorer: Scorer) -> float:
    """Renders `count` pictures and 20 of the class, then scores them; seconds of the scoring."""
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
            ("image_features", "CLIP pictures (CLIP-T, CLIP-I)"),
            ("text_features", "CLIP prompts (CLIP-T)"),
        ),
        "dino": (("image_features", "DINO (DINO-I, PRES, DIV)"),),
        "blip": (("scores", "BLIP (BLIP-T)"),),
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


def benchmark_train(config: BenchmarkConfig) -> None:
    """A training of 2 steps and one of more: the difference is what the further steps take."""
    base, flags = TOON.path, read_setting(TOON.settings, "classdiffusion")
    flags += [
        f"--pretrained_model_name_or_path={base}",
        f"--instance_data_dir={REPOSITORY}/data/dog",
        "--cls_token=dog",
    ]
    flags += ["--instance_prompt=a photo of a <new1> dog", "--checkpointing_steps=100000"]
    seconds = {}
    with TemporaryDirectory() as folder:
        for steps in (2, 2 + config.steps):
            start = time.perf_counter()
            train_classdiffusion.main(
                [*flags, f"--max_train_steps={steps}", f"--output_dir={folder}/{steps}"]
            )
            seconds[steps] = time.perf_counter() - start
    step = (seconds[2 + config.steps] - seconds[2]) / config.steps
    print(f"training on {TOON.name}: {step:.3f} s/step of batch 2, peak {peak()}")
    pipeline, pictures = load_pipeline(base), config.pictures or 8
    prompts, seeds = ["a photo of a dog in the snow"] * pictures, range(pictures)
    start = time.perf_counter()
    for _ in sample(pipeline, prompts, seeds, config.num_inference_steps, batch_size=pictures):
        pass
    picture = (time.perf_counter() - start) / pictures
    print(f"inference: {picture:.2f} s/picture at {config.num_inference_steps} steps, peak {peak()}")


def peak() -> str:
    """The most memory this process has held so far, and the most of its GPU's."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    told = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20:.0f} MiB"
    if torch.cuda.is_available():
        told += f", GPU {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB"
    return told


if __name__ == "__main__":
    exit_on_user_error(main)

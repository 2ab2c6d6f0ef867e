"""Sampling with a concept against sampling its base, image by image in alternation."""

import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import train_classdiffusion
from scripts.speed.bases import random_base, random_concepts, training_arguments
from scripts.speed.variants import work_folder
from utils.bases.families import load_pipeline
from utils.concepts.load import load_concept
from utils.sampling.images import sample

if TYPE_CHECKING:
    from scripts.benchmark import SampleFlags


def compare_sampling(config: "SampleFlags") -> None:
    """Trains one step, loads the concept, and prints both times and their ratio."""
    base = random_base(config.base, work_folder(config.work_dir, config.base))
    with TemporaryDirectory() as folder:
        concepts, concept = random_concepts(Path(folder), config.side, 1), Path(folder) / "concept"
        arguments = [*training_arguments(base, concepts, 1), f"--output_dir={concept}"]
        train_classdiffusion.main([*arguments, "--max_train_steps=1", f"--resolution={config.side}"])
        plain, merged = load_pipeline(base), load_pipeline(base)
        load_concept(merged, concept)
    prompts = {"base": (plain, "a photo of a dog"), "concept": (merged, "a photo of a <new1> dog")}
    seconds: dict[str, list[float]] = {name: [] for name in prompts}
    for seed in range(config.rounds + 1):  # the first round warms up
        for name, (pipeline, prompt) in prompts.items():
            start = time.perf_counter()
            list(sample(pipeline, [prompt], [seed], config.num_inference_steps))
            seconds[name].append(time.perf_counter() - start)
    pairs = [one / other for one, other in zip(seconds["concept"], seconds["base"], strict=True)][1:]
    for name, values in seconds.items():
        print(f"{name}: {statistics.median(values[1:]):.3f} s an image of {config.num_inference_steps} steps")
    print(f"ratio: {statistics.median(pairs):.3f} ({min(pairs):.3f}–{max(pairs):.3f})")

"""The checks of scripts/gpu_check.py: each measures one thing on the device and says whether it is right."""

import os
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from utils.config.methods import METHODS

# name -> (flags, environment, largest relative difference of a loss term to the CPU's in float32)
PRECISIONS = {
    "fp32": ((), {"NVIDIA_TF32_OVERRIDE": "0"}, 1e-4),
    "tf32": ((), {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}, 1e-2),
    "bf16": (("--mixed_precision=bf16",), {}, 5e-2),
    "fp16": (("--mixed_precision=fp16",), {}, 2e-2),
}
STEPS = 3  # of the parity: the first compares the forward pass, the others the backward and the update
POOL = ("--mixed_precision=bf16", "--latent_pool=1")
TARGETS = {"peak_gib": 8.0, "low_memory_gib": 5.0, "end_to_end_seconds": 30.0}  # at SD 1.5's shape, on a GPU


@dataclass(frozen=True)
class Check:
    """limit: seconds after which it is stopped, on a GPU. run(config): {"ok": …} and what was found."""

    title: str
    limit: float
    run: Callable[[Any], dict[str, Any]]


@contextmanager
def variables(**values: str):
    """Environment variables while the block runs, for processes that it starts."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def work(config: Any, shape: str) -> list[str]:
    """The flags of a training at a base's shape: random weights and images, made once."""
    from scripts.speed.bases import default_resolution, random_base, random_concepts, training_arguments

    folder, side = config.output_dir / shape, default_resolution(shape)
    base, images = random_base(shape, folder / "base"), random_concepts(folder / "images", side, 1)
    return [*training_arguments(base, images, 1), f"--resolution={side}", "--train_batch_size=2"]


def losses_of(arguments: list[str], flags: tuple[str, ...], steps: int) -> list[dict[str, float]]:
    """The loss terms of the first steps, in a process of its own."""
    from scripts.speed.variants import Variant, Worker

    worker = Worker.start(Variant("parity", "ours", flags), [*arguments, "--max_train_steps=100"])
    try:
        for _ in range(steps - 1):
            worker.step()
        terms = [step["terms"] for step in (worker.first, *worker.steps)]
        return [{name: each[name] for name in each if name.startswith("loss")} for each in terms]
    finally:
        worker.stop()


def parity(config: Any) -> dict[str, Any]:
    """The loss terms of STEPS steps on the device in each precision, beside the CPU's in float32."""
    arguments = work(config, "tiny")
    with variables(ACCELERATE_USE_CPU="true", CUDA_VISIBLE_DEVICES=""):
        expected = losses_of(arguments, (), STEPS)
    found: dict[str, Any] = {}
    for name, (flags, environment, bound) in PRECISIONS.items():
        if name == "fp16" and config.device == "cpu":
            found[name] = "trains on CUDA only"
            continue
        with variables(**environment):
            here = losses_of(arguments, flags, STEPS)
        pairs = [
            (step[term], other[term]) for step, other in zip(here, expected, strict=True) for term in other
        ]
        # SPL begins at 1e-3 and less: an absolute part, so that its rounding is not what decides.
        difference = max(abs(a - b) / (abs(b) + 1e-3) for a, b in pairs)
        found[name] = {"difference": difference, "bound": bound, "ok": difference <= bound}
    return {"ok": all(each["ok"] for each in found.values() if isinstance(each, dict)), "precisions": found}


def fresh_training(arguments: list[str]) -> None:
    """train_classdiffusion.py in this process, whatever ran before."""
    from accelerate.state import AcceleratorState, GradientState

    import train_classdiffusion

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    train_classdiffusion.main([*arguments, "--overwrite"])


def methods(config: Any) -> dict[str, Any]:
    """Each method from start to file, and its concept loaded: 20 steps on toon, 2 on the tiny base."""
    from utils.bases import load_pipeline
    from utils.common.files import read_records
    from utils.concepts.load import load_concept

    shape, steps = ("tiny", 2) if config.tiny else ("toon", 20)
    arguments, images = work(config, shape), config.output_dir / shape / "images" / "0"
    base = config.output_dir / shape / "base"
    prior = [f"--class_data_dir={images}", "--class_prompt=a dog", "--num_class_images=5"]
    # A method whose captions are templates takes no prompt, which the list of concepts has.
    plain = [each for each in arguments if not each.startswith(("--concepts_list", "--initializer"))]
    found: dict[str, Any] = {}
    for name, method in METHODS.items():
        folder, start = config.output_dir / "methods" / name, time.monotonic()
        own = [
            f"--method={name}",
            f"--output_dir={folder}",
            f"--max_train_steps={steps}",
            "--max_grad_norm=1",
        ]
        own += prior if any(stage.prior for stage in method.stages) else []
        fresh_training([*plain, *own, f"--instance_data_dir={images}"])
        load_concept(load_pipeline(base, config.device), folder)
        losses = [record["loss"] for record in read_records(folder / "log.jsonl")]
        seconds = round(time.monotonic() - start, 1)
        found[name] = {"steps": len(losses), "last_loss": losses[-1], "seconds": seconds}
    ok = all(each["steps"] == steps and isfinite(each["last_loss"]) for each in found.values())
    return {"ok": ok, "methods": found}


def benchmark(config: Any) -> dict[str, Any]:
    """Seconds of a step and peak memory: the reference, ours, with a pool, with --low_memory."""
    names = ("ours fp32 + pool", "ours bf16", "ours bf16 + pool", "ours bf16 + pool + low memory")
    from scripts.benchmark import TrainFlags
    from scripts.speed.compare import compare

    shape, rounds = ("tiny", 1) if config.tiny else ("sd15", 5)
    folder = config.output_dir / shape / "base"
    wanted = TrainFlags(base=shape, rounds=rounds, variants=",".join(names), work_dir=folder)
    found = {}
    for record in compare(wanted):
        found[record["variant"]] = {
            "seconds": statistics.median(record["seconds"]),
            "ratio": statistics.median(record["ratios"]),
            "peak_gib": record["peak_bytes"] / 2**30,
            "first_step_after": record["first_step_after"],
            "of_ceiling": record["of_ceiling"],
        }
    small = {
        "peak_gib": found["ours bf16 + pool"]["peak_gib"],
        "low_memory_gib": found["ours bf16 + pool + low memory"]["peak_gib"],
    }
    return {"ok": len(found) == 6, "targets_met": met(config, small), "variants": found}


def met(config: Any, found: dict[str, float]) -> dict[str, bool] | None:
    """Which of TARGETS are met; None where the device or the size is not theirs."""
    if config.tiny or config.device == "cpu":
        return None
    return {name: value <= TARGETS[name] for name, value in found.items()}


def compiled(config: Any) -> dict[str, Any]:
    """Seconds of a step with the UNet compiled, and with CUDA graphs, after a first step that compiles."""
    from scripts.speed.variants import Variant, Worker

    shape, rounds = ("tiny", 2) if config.tiny else ("sd15", 10)
    arguments = [*work(config, shape), "--max_train_steps=1000"]
    modes = {"plain": None, "compiled": "default"}
    modes |= {"cuda graphs": "reduce-overhead"} if config.device == "cuda" else {}
    found = {}
    for name, mode in modes.items():
        worker = Worker.start(Variant(name, "ours", POOL), arguments, compile=mode)
        try:
            worker.ask("encode")
            for _ in range(rounds + 2):
                worker.step()
            seconds = [step["seconds"] for step in worker.steps[2:]]
            first = worker.first
            found[name] = {
                "seconds": statistics.median(seconds),
                "first_step_seconds": first["seconds"],
                "loss": first["terms"]["loss"],
            }
        finally:
            worker.stop()
    same = [abs(each["loss"] / found["plain"]["loss"] - 1) < 0.02 for each in found.values()]
    return {"ok": all(same), "modes": found}


def end_to_end(config: Any) -> dict[str, Any]:
    """A training from the start of its process to its file: 500 steps at SD 1.5's shape, or 5 tiny ones."""
    import subprocess
    import sys

    shape, steps = ("tiny", 5) if config.tiny else ("sd15", 500)
    arguments, folder = work(config, shape), config.output_dir / "end_to_end"
    own = [
        f"--output_dir={folder}",
        f"--max_train_steps={steps}",
        "--checkpointing_steps=1000",
        "--overwrite",
    ]
    start = time.monotonic()
    command = [sys.executable, "train_classdiffusion.py", *arguments, *own, *POOL[:1], "--latent_pool=4"]
    subprocess.run(command, check=True)
    seconds = time.monotonic() - start
    targets = met(config, {"end_to_end_seconds": seconds})
    return {"ok": bool(list(folder.glob("*.safetensors"))), "train_seconds": seconds, "targets_met": targets}


def sampling(config: Any) -> dict[str, Any]:
    """Four images at once and one by one: the time, and that they are the same."""
    import numpy as np

    from scripts.speed.bases import random_base
    from utils.bases import load_pipeline
    from utils.sampling.images import sample

    shape, steps = ("tiny", 2) if config.tiny else ("sd15", 25)
    pipeline = load_pipeline(random_base(shape, config.output_dir / shape / "base"), config.device)
    prompts, found = ["a photo of a dog"] * 4, {}
    for batch in (4, 1):
        start = time.monotonic()
        images = list(sample(pipeline, prompts, range(4), steps, batch_size=batch))
        found[batch] = (time.monotonic() - start, np.stack([np.asarray(image, float) for image in images]))
    difference = float(np.abs(found[4][1] - found[1][1]).mean())
    return {
        "ok": difference < 2,  # of 255 levels, in half precision
        "steps": steps,
        "seconds_of_four": found[4][0],
        "seconds_one_by_one": found[1][0],
        "mean_difference": difference,
        "dtype": str(pipeline.unet.dtype),
    }


def toon_concept(config: Any) -> Path:
    """A concept trained on toon and data/dog, for clips and scores; made once."""
    folder = config.output_dir / "concept"
    if not (folder / "training_config.json").is_file():
        own = [f"--output_dir={folder}", f"--max_train_steps={2 if config.tiny else 100}"]
        fresh_training(["--instance_data_dir=data/dog", "--cls_token=dog", *own])
    return folder


def video(config: Any) -> dict[str, Any]:
    """A clip of a concept on toon."""
    import videogen

    folder, steps = config.output_dir / "video", 2 if config.tiny else 25
    where = [f"--concept={toon_concept(config)}", f"--output_dir={folder}", f"--device={config.device}"]
    start = time.monotonic()
    videogen.main([*where, f"--num_inference_steps={steps}", "--prompt=a <new1> dog running in the snow"])
    return {"ok": bool(list(folder.glob("*.gif"))), "clip_seconds": time.monotonic() - start}


def evaluation(config: Any) -> dict[str, Any]:
    """A concept on toon scored by every judge."""
    from scripts import evaluate
    from utils.common.files import read_json

    folder = config.output_dir / "evaluation"
    few = ["--num_inference_steps=2", "--max_prompts=2"] if config.tiny else ["--num_inference_steps=25"]
    start = time.monotonic()
    own = [str(toon_concept(config)), f"--output_dir={folder}", "--num_images=1", "--num_class_images=2"]
    evaluate.main(["concept", *own, *few])
    scores = next(iter(sorted(folder.rglob("*.json"))), None)
    assert scores is not None and read_json(scores), f"no scores in {folder}"
    return {"ok": True, "scored_seconds": time.monotonic() - start}


CHECKS = {
    "parity": Check("loss terms in each precision beside the CPU's", 240, parity),
    "methods": Check("each method from start to file", 300, methods),
    "benchmark": Check("the training step beside the published one", 400, benchmark),
    "compiled": Check("the training step with torch.compile and CUDA graphs", 400, compiled),
    "end_to_end": Check("a training from start to file", 240, end_to_end),
    "sampling": Check("images, four at once and one by one", 180, sampling),
    "video": Check("a clip", 180, video),
    "evaluation": Check("scores of a concept", 240, evaluation),
}

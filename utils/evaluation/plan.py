"""What an evaluation has still to do, and about how long that takes, for --dry_run.

B images, C latent channels, h = w latent pixels, L tokens, D text width.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from utils.bases.families import family_of, load_base
from utils.bases.registry import Base
from utils.common.words import counted, duration
from utils.concepts.lora import is_kv_name
from utils.config.optimizers import OPTIMIZERS
from utils.config.train_config import TrainConfig
from utils.evaluation.folder import Settings, is_scored
from utils.evaluation.shots import extra_shots, shots_of
from utils.evaluation.sources import Source
from utils.evaluation.training_process import config_of, is_trained
from utils.training.plan import attach_all
from utils.training.preflight import outline_of

BATCH = 2  # images of a measured step


@dataclass
class Work:
    """What is left to do. jobs: subjects and methods. passes: images that go through training, forward and
    backward. images: to be drawn. steps: denoising steps of all images, the class images of trainings
    included. of_method: trainings of each method."""

    jobs: int = 0
    trainings: int = 0
    passes: int = 0
    images: int = 0
    steps: int = 0
    of_method: dict[str, int] = field(default_factory=dict)


def work_of(source: Source, settings: Settings, results: Path) -> tuple[Work, Work]:
    """All of a run, and what of it is not in its folder yet; only images that are drawn here count."""
    whole, left = Work(), Work()
    if source.images:
        return whole, left
    drawing = settings.drawing
    for method in source.methods:
        for subject in source.subjects:
            extra = extra_shots(subject, method, settings, source.base.world)
            named = source.subject_of(method)
            shots = shots_of(subject, method, settings.seeds, named) + extra.of_method
            folder = results / method / subject.name
            scored = is_scored(folder, settings.metrics)
            missing = 0 if scored else sum(not (results / shot.image).is_file() for shot in shots)
            trains = method in source.trained
            untrained = trains and not scored and not is_trained(folder / "concept")
            left.jobs += not scored
            for work, count, training in ((whole, len(shots), trains), (left, missing, untrained)):
                work.images += count
                work.steps += count * drawing.num_inference_steps
                if training:
                    config = config_of(subject, method, source.base.path, source.flags(method))
                    add_training(work, source, config, len(subject.individuals))
    return whole, left


def add_training(work: Work, source: Source, config: TrainConfig, individuals: int) -> None:
    """Adds a training of so many individuals and the class images that it draws."""
    images = config.train_batch_size * config.gradient_accumulation_steps
    work.trainings += 1
    work.of_method[config.method] = work.of_method.get(config.method, 0) + 1
    work.passes += sum(
        (last - first + 1) * images * (2 if stage.prior else 1) for stage, first, last in config.plan()
    )
    if config.uses_prior:
        drawn = config.num_class_images * individuals
        work.steps += drawn * source.base.class_images.num_inference_steps


def describe(
    source: Source, settings: Settings, results: Path, device: torch.device, at_once: int | None = None
) -> Iterator[str]:
    """The lines of --dry_run. Loads the base to time one step of each kind, if anything is left to do.

    at_once: jobs at a time of --executor, None without it.
    """
    whole, left = work_of(source, settings, results)
    of = f"{counted(len(source.subjects), 'subject')} x {counted(len(source.methods), 'method')}"
    if source.images:
        yield f"{of}: {counted(len(source.images), 'image')} to score, none to draw"
        return
    yield (
        f"{of}: {counted(whole.trainings, 'training')}, {whole.trainings - left.trainings:,} done; "
        f"{counted(whole.images, 'image')}, {whole.images - left.images:,} done"
    )
    if at_once is not None:
        yield f"{counted(left.jobs, 'job')} to submit, {at_once} at a time"
    if not left.images and not left.trainings:
        yield "nothing is left to train or to draw"
        return
    yield disk(source, left, at_once or 1)
    learn, draw = measure(source.base, device, settings.drawing.dtype if device.type == "cuda" else "float32")
    yield (
        f"measured on {device}, {counted(BATCH, 'image')} at a time: {learn:.3g} s an image of a training "
        f"step, {draw:.3g} s a denoising step of an image"
    )
    seconds = left.passes * learn + left.steps * draw
    yield f"left: {duration(seconds)} in one process, without loading models and scoring"
    if at_once is not None:
        unit = "GPU" if device.type == "cuda" else str(device).upper()
        yield (
            f"in jobs: {seconds / 3600:.1f} {unit} hours, if theirs is like this one; "
            f"{duration(seconds / at_once)} with {at_once} at a time"
        )


def disk(source: Source, left: Work, at_once: int) -> str:
    """What is still to be written at most: uncompressed images, trained concepts, a checkpoint of each
    training at work."""
    path, trained, largest = source.base.path, 0, 0
    for method, count in left.of_method.items():
        config = config_of(source.subjects[0], method, path, source.flags(method))
        learned = attach_all(outline_of(config), config)
        numbers = sum(value.numel() for each in learned.values() for value in each.values())
        trained += 4 * numbers * count
        largest = max(largest, (4 + OPTIMIZERS[config.optimizer].moments) * numbers)
    images = 3 * family_of(path).outline(path).resolution ** 2 * left.images
    checkpoints = largest * min(at_once, left.trainings)
    sizes = ", ".join(
        f"{name} {size / 1e6:,.1f} MB"
        for name, size in (("images", images), ("concepts", trained), ("checkpoints meanwhile", checkpoints))
    )
    return f"disk, at most: {sizes}"


def measure(base: Base, device: torch.device, dtype: str) -> tuple[float, float]:
    """(seconds of training on an image: encoding, forward, backward; of a guided denoising step of one).

    Each is one call after one to warm up, of BATCH images. dtype: of drawing, "torch.float32"; training is
    timed in float32, with K and V learning.
    """
    model = load_base(base.path, device)
    unet, side = model.unet, model.resolution // model.latent_factor
    pixels = torch.zeros(BATCH, 3, model.resolution, model.resolution, device=device)
    latents = torch.randn(2 * BATCH, model.latent_channels, side, side).to(device)
    timesteps = torch.ones(2 * BATCH, dtype=torch.long, device=device)
    states = model.encode(model.tokenize(["a photo"] * 2 * BATCH))
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(is_kv_name(name))

    def learn() -> None:
        model.posterior(pixels)
        first = tuple(state[:BATCH] for state in states)
        model.predict(latents[:BATCH], timesteps[:BATCH], first).square().mean().backward()

    learning = _seconds(learn, device) / BATCH
    unet.requires_grad_(False).to(getattr(torch, dtype.removeprefix("torch.")))
    with torch.no_grad():
        noisy = latents.to(unet.dtype)
        return learning, _seconds(lambda: model.predict(noisy, timesteps, states), device) / BATCH


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Of a second call."""
    for _ in range(2):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
    return time.perf_counter() - start

"""What a training measures of itself besides its losses: with fixed captions, images and noise, so that
checkpoints can be compared. Nothing here learns or draws from a shared generator.

K concepts.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from utils.bases.base import BaseModel
from utils.bases.registry import base_row, judge_path
from utils.common.images import open_image
from utils.config.train_config import TrainConfig
from utils.data.augmentation import centre_square
from utils.data.dataset import InstanceDataset
from utils.losses.preserve import class_caption
from utils.losses.spl import cosine_distance
from utils.measures.drift import (
    NoisyImages,
    Probe,
    class_images,
    make_probe,
    measure_drift,
    noise_images,
    predict,
)
from utils.scores.encoders import ClipEncoder, DinoEncoder, check_clip_prompts, check_dino
from utils.scores.similarity import clip_t, dino_i

if TYPE_CHECKING:
    from utils.training.run import Run

CLASS_IMAGES = 4  # of each class, drawn by the base before the first step


@dataclass(frozen=True)
class Judges:
    """Of validation images: the CLIP with the prompt's feature (1, P), and the DINO with those of the
    concepts' images (M, D), all unit vectors."""

    clip: ClipEncoder
    prompt: Tensor
    dino: DinoEncoder
    real: Tensor


@dataclass(frozen=True)
class Measures:
    """probe: the base on class captions and images. own: the concepts' images, noised, where their error
    chooses the checkpoint. judges: where validation images do."""

    probe: Probe | None
    own: NoisyImages | None
    judges: Judges | None


def check_judges(config: TrainConfig) -> None:
    """Raise UserError for judges of validation images that cannot be used, or cannot read the prompt."""
    if config.select_checkpoint == "validation":
        judges = base_row(config.pretrained_model_name_or_path).judges
        check_clip_prompts(judge_path(judges["clip"], "clip"), [_asked(config)])
        check_dino(judge_path(judges["dino"], "dino"))


def prepare_measures(
    base: BaseModel,
    config: TrainConfig,
    instances: InstanceDataset,
    autocast: Callable[[], AbstractContextManager],
) -> Measures | None:
    """What the run will measure, None for nothing; before anything has been trained.

    autocast: the precision in which `measure_run` will measure; in another the base would have drifted.
    """
    chosen = config.select_checkpoint
    if not config.drift_steps and chosen is None:
        return None
    probe = own = judges = None
    if config.drift_steps or chosen == "drift":
        words = list(dict.fromkeys(config.cls_tokens))
        sampling = base_row(config.pretrained_model_name_or_path).sampling
        images = class_images(base, words, CLASS_IMAGES, config.seed, sampling)
        with autocast():
            probe = make_probe(base, images, config.seed)
    if chosen == "error":
        pairs = [
            (centre_square(open_image(path), instances.size), concept.instance_prompt)
            for concept, path in instances.images
        ]
        own = noise_images(base, *zip(*pairs, strict=True), config.seed)
    if chosen == "validation":
        judges = _load_judges(config, instances, base.device)
    return Measures(probe, own, judges)


def _load_judges(config: TrainConfig, instances: InstanceDataset, device: torch.device) -> Judges:
    paths = base_row(config.pretrained_model_name_or_path).judges
    clip = ClipEncoder(judge_path(paths["clip"], "clip"), device)
    dino = DinoEncoder(judge_path(paths["dino"], "dino"), device)
    images = [open_image(path) for _, path in instances.images]  # a few
    return Judges(clip, clip.text_features([_asked(config)]), dino, dino.image_features(images))


def _asked(config: TrainConfig) -> str:
    """The validation prompt with the class in the place of each concept."""
    return class_caption(config.validation_prompt, config.concepts())


def measure_run(run: "Run", step: int, last_of_stage: bool, drawn: Sequence[Image.Image]) -> dict[str, float]:
    """What is due after `step`, for the log. drawn: the validation images of this step, if any.

    drift_layers, drift_prediction, drift_relative: see drift.py. distance: of the concepts' phrases to their
    classes'. error: of the predicted noise of the concepts' images. validation: `agreement` of its images.
    """
    measures, config, values = run.measures, run.config, {}
    if measures is None:
        return values
    due = is_candidate(config, step, last_of_stage)
    chosen = config.select_checkpoint if due else None
    periodic = config.drift_steps and (step % config.drift_steps == 0 or step == config.max_train_steps)
    with run.accelerator.autocast():
        if periodic or chosen == "drift":
            values |= {f"drift_{k}": v for k, v in vars(measure_drift(run.base, measures.probe)).items()}
        if chosen == "error":
            wrong = predict(run.base, measures.own) - measures.own.target
            values["error"] = wrong.square().mean().item()
    if chosen == "spl":
        values["distance"] = _distance(run)
    if chosen == "validation":
        values["validation"] = agreement(measures.judges, drawn)
    return values


def is_candidate(config: TrainConfig, step: int, last_of_stage: bool) -> bool:
    """Whether the checkpoint of a step is one to choose from: those of an interruption are not."""
    return config.select_checkpoint is not None and (step % config.checkpointing_steps == 0 or last_of_stage)


@torch.no_grad()
def _distance(run: "Run") -> float:
    phrases, base = run.phrases, run.base
    features = base.features(base.encode(phrases.ids), phrases.ids, phrases.modifiers)
    classes = phrases.class_features * (len(features) // len(phrases.class_features))  # a copy for each layer
    distances = [cosine_distance(f, c).mean() for f, c in zip(features, classes, strict=True)]
    return torch.stack(distances).mean().item()


def agreement(judges: Judges, images: Sequence[Image.Image]) -> float:
    """Harmonic mean of the images' CLIP-T and DINO-I; 0 where one of them is not positive.

    CLIP-T asks for the prompt, its concepts named by class; DINO-I for likeness to the concept's images.
    """
    obeyed = clip_t(judges.clip.image_features(images), judges.prompt.expand(len(images), -1)).mean().item()
    alike = dino_i(judges.dino.image_features(images), judges.real)
    return 2 * obeyed * alike / (obeyed + alike) if min(obeyed, alike) > 0 else 0.0

"""The judgement of the motion adapter on a personalised model, which motion_accuracy.py prints."""

import random
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from scripts.toon.judge.motion_measures import Clip, displacement, mean_of, smoothness
from scripts.toon.models.recogniser import Recogniser
from scripts.toon.world.captions import describe, with_article
from scripts.toon.world.clips import FRAMES, draw_clip, sample_clip
from scripts.toon.world.prompts import Prompt, stated, unseen
from scripts.toon.world.world import Scene
from utils.common.images import list_images, open_image
from utils.concepts.load import load_concept
from utils.data.dataset import Concept
from utils.sampling.clips import animate, sample_clips, settings_of
from utils.sampling.grids import save_grid
from utils.sampling.images import make_scheduler, sample
from utils.sampling.motion_adapters import noise_levels
from utils.scores.encoders import DinoEncoder
from utils.scores.similarity import dino_i

if TYPE_CHECKING:
    from diffusers import AnimateDiffPipeline, StableDiffusionPipeline

POSES = ("running", "jumping", "waving", "sitting")
# The last, of a dog, holds three things that neither the UNet's nor the adapter's training held together.
SITUATIONS = ({}, {"place": "beach"}, {"place": "grass"}, {"worn": "headphones", "place": "beach"})
SETTINGS = settings_of("toon")
MEASURED = ("running", "jumping", "sitting")  # for displacement


def prompts_of(kind: str, subject: str) -> list[Prompt]:
    """'a <new1> dog running', 'a <new1> dog running on the beach', …, and what each states."""
    scenes = [Scene(unseen(kind), pose=pose, **situation) for pose in POSES for situation in SITUATIONS]
    return [(with_article(f"a {describe(scene, subject)}"), stated(scene, colour=False)) for scene in scenes]


def obeyed(images: Sequence[Image.Image], facts: Sequence[dict[str, str]]) -> dict[str, float]:
    """attribute -> share of the images asked for it that show it; "all": that show all they are asked for."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for wanted, read in zip(facts, Recogniser().read(list(images)), strict=True):
        right = {name: read[name] == value for name, value in wanted.items()}
        for name, hit in (right | {"all": all(right.values())}).items():
            hits[name].append(hit)
    return {name: float(np.mean(values)) for name, values in hits.items()}


def rendered(pose: str, count: int = 16) -> list[Clip]:
    """Clips that the renderer draws of an animal in the pose on plain grounds."""
    clips: list[Clip] = []
    index = 0
    while len(clips) < count:
        clip = sample_clip(random.Random(f"motion-accuracy/{pose}/{index}"))
        index += 1
        if (clip.scene.pose, clip.scene.place, clip.scene.neighbour) == (pose, "plain", "nothing"):
            clips.append(draw_clip(clip))
    return clips


def film(video: "AnimateDiffPipeline", texts: Sequence[str], seeds: Sequence[int], name: str) -> list[Clip]:
    clips = sample_clips(video, texts, seeds, num_frames=FRAMES, **SETTINGS)
    return list(tqdm(clips, name, total=len(texts)))


def stills(pipeline: "StableDiffusionPipeline", texts: Sequence[str]) -> list[Image.Image]:
    """An image for each text, seeds 0, 1, …, with the clips' settings."""
    settings = {name: value for name, value in SETTINGS.items() if name != "window_stride"}
    return list(sample(pipeline, texts, range(len(texts)), batch_size=16, **settings))


def judge(
    pipeline: "StableDiffusionPipeline",
    concept: Concept,
    concept_folder: Path,
    adapter: str,
    dino: DinoEncoder,
    per_prompt: int,
    sheets: Path,
) -> dict[str, Any]:
    """The numbers of the module's docstring; writes a contact sheet for each set of clips."""
    kind, subject = concept.cls_token, f"{concept.modifier_token} {concept.cls_token}"
    real = dino.image_features([open_image(path) for path in list_images(concept.instance_data_dir)[0]])
    prompts = [prompt for prompt in prompts_of(kind, subject) for _ in range(per_prompt)]
    texts, facts = [text for text, _ in prompts], [wanted for _, wanted in prompts]
    pipeline.scheduler = make_scheduler("ddim", noise_levels(pipeline.scheduler.config, adapter))
    of_class = stills(pipeline, [text for text, _ in prompts_of(kind, kind) for _ in range(per_prompt)])
    load_concept(pipeline, concept_folder)
    drawn = stills(pipeline, texts)
    video = animate(pipeline, adapter)
    started = time.monotonic()
    clips = film(video, texts, range(len(texts)), "clips")
    seconds = (time.monotonic() - started) / len(clips)
    many = range(1000, 1000 + 4 * per_prompt)
    moving = {pose: film(video, [f"a {subject} {pose}"] * len(many), many, pose) for pose in MEASURED}

    save_sheet(clips[::per_prompt], texts[::per_prompt], sheets / "clips.png")
    for pose, own in moving.items():
        save_sheet(own, [f"a {subject} {pose}, seed {seed}" for seed in many], sheets / f"{pose}.png")
    frames = [frame for clip in clips for frame in clip]
    features = dino.image_features(frames)
    stills_of = {"stills": drawn, "stills of the class": of_class}
    return {
        "clips": len(clips),
        "seconds per clip": seconds,
        "threads": torch.get_num_threads(),
        "dino": dino.model_id,
        "identity": {"frames": dino_i(features, real)}
        | {name: dino_i(dino.image_features(images), real) for name, images in stills_of.items()},
        **motion(clips, features, moving, dino),
        "prompt accuracy": {
            "frames": obeyed(frames, [wanted for wanted in facts for _ in range(FRAMES)]),
            "stills": obeyed(drawn, facts),
        },
    }


def motion(
    clips: list[Clip], features: Tensor, moving: dict[str, list[Clip]], dino: DinoEncoder
) -> dict[str, Any]:
    """How smoothly the clips move and how far, and the same of clips that the renderer drew.

    features: (clips · F, D) of DINO, clip by clip. moving: pose -> clips on plain grounds.
    """
    true = {pose: rendered(pose) for pose in POSES}
    true_clips = [clip for own in true.values() for clip in own]
    true_features = dino.image_features([frame for clip in true_clips for frame in clip])
    return {
        "smoothness": smoothness(clips, features),
        "smoothness, rendered": smoothness(true_clips, true_features),
        "displacement": {pose: mean_of([*map(displacement, own)]) for pose, own in moving.items()},
        "displacement, rendered": {pose: mean_of([*map(displacement, true[pose])]) for pose in moving},
    }


def save_sheet(clips: Sequence[Clip], texts: Sequence[str], path: Path) -> None:
    """Every other frame of each clip, a row per clip."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_grid([frame for clip in clips for frame in clip[::2]], texts, path)

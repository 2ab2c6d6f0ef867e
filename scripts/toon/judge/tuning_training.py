"""The individuals on which settings are chosen, and one training of one of them."""

import os
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.toon.world.examples import draw_individual
from scripts.toon.world.world import Look, sample_look
from utils.bases.registry import BASES, REPOSITORY
from utils.common.errors import UserError
from utils.common.process import run_child
from utils.config.methods import METHODS
from utils.config.train_config import resolve

KINDS = ("dog", "cat", "rabbit", "pig")
QUARTERS = 4  # of a training, each with a checkpoint
BASE = BASES["toon"]


@dataclass(frozen=True)
class Individual:
    """A tuning individual: its number, its class and the folder of its five images."""

    number: int
    kind: str
    images: Path


def look_of(i: int) -> Look:
    """What tuning individual i looks like."""
    return sample_look(random.Random(f"tuning/{i}"), KINDS[i % len(KINDS)])


def individual(i: int, folder: Path) -> Individual:
    """Tuning individual i, its images rendered if they are not there."""
    look, images = look_of(i), folder / f"individual-{i}"
    draw_individual(look, f"tuning/{i}", images)
    return Individual(i, look.kind, images)


def given_of(method: str) -> Mapping[str, Any]:
    """The values that toon's preset gives a method: flag -> value."""
    return resolve([f"--pretrained_model_name_or_path={BASE.name}", f"--method={method}"])[1].values


def steps_of(method: str) -> int:
    """The steps that toon's preset gives a method."""
    return given_of(method)["max_train_steps"]


def train(method: str, flags: Sequence[str], each: Individual, folder: Path, classes: Path) -> None:
    """One training with a checkpoint after every quarter of its steps; a killed one goes on.

    flags: win over toon's preset. What the training prints goes to a file next to the folder. Raises
    UserError if the training fails.
    """
    caption = METHODS[method].subject.format(token="<new1>", cls=each.kind)
    steps = steps_of(method)
    command = [sys.executable, str(REPOSITORY / "train_classdiffusion.py"), f"--method={method}"]
    command += [f"--pretrained_model_name_or_path={BASE.path}"]
    command += [f"--instance_data_dir={each.images}", f"--cls_token={each.kind}", "--modifier_token=<new1>"]
    command += [f"--instance_prompt=a photo of a {caption}"] * (METHODS[method].captions == "prompt")
    command += [f"--class_data_dir={classes / each.kind}"] * METHODS[method].stages[-1].prior
    command += [*flags, f"--checkpointing_steps={steps // QUARTERS}", "--resume_from_checkpoint=latest"]
    command.append(f"--output_dir={folder}")
    log = folder.parent / f"{folder.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    if code := run_child(command, log, os.environ):
        raise UserError(f"the training in {folder} ended with {code}: see {log}")

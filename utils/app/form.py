"""What the page asks to be trained, as the flags of train_classdiffusion.py."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from utils.bases.registry import base_row, portable
from utils.common.errors import UserError
from utils.config.methods import METHODS
from utils.config.train_config import TrainConfig, parse_config, resolve
from utils.data.world import strangers
from utils.report.words import listed

TOKEN = "<new1>"
PARTS = 4  # of a training: after each a checkpoint and samples, so that little is lost and progress shows
SAMPLES = 2  # images at a time
# What the page calls what the command's messages name.
LABELS = {
    "--modifier_token": "Token",
    "--cls_token": "Class word",
    "--max_train_steps": "Steps",
    "--seed": "Seed",
    "--method": "Method",
    "--prompt": "prompt",
    "BASE=sd15, on a GPU": "the base model sd15",
    "--format lora": "the LoRA",
    "--format diffusers": "python -m scripts.export with that format, diffusers",
}


@dataclass(frozen=True)
class Form:
    """The fields of the page. cls: the class word; prompt: of the samples, "" for the usual one."""

    cls: str
    base: str = "toon"
    method: str = "classdiffusion"
    steps: int | None = None  # None: the base's own
    seed: int = 0
    token: str = TOKEN
    prompt: str = ""

    @property
    def subject(self) -> str:
        """How prompts name the concept, "<new1> dog"."""
        return METHODS[self.method].subject.format(token=self.token, cls=self.cls)


def default_steps(base: str, method: str) -> int:
    """The steps that the preset gives the base and the method."""
    _, preset = resolve([f"--pretrained_model_name_or_path={base}", f"--method={method}"])
    return preset.values.get("max_train_steps", TrainConfig.max_train_steps)


def default_prompts(subject: str) -> list[str]:
    """Likeness first, then whether the concept still obeys a prompt."""
    return [f"a photo of a {subject}", f"a {subject} on the beach", f"a {subject} in the snow"]


def flags_of(form: Form, images: Path, output: Path) -> list[str]:
    """The flags that the form gives; the preset of the base and the method gives the others.

    Raises UserError for a form without a class word.
    """
    if not form.cls.strip():
        raise UserError("no class word: write what your images show, e.g. dog")
    steps = form.steps or default_steps(form.base, form.method)
    part = max(1, -(-steps // PARTS))
    given = {
        "pretrained_model_name_or_path": portable(base_row(form.base).path),
        "method": form.method,
        "instance_data_dir": images,
        "modifier_token": form.token,
        "cls_token": form.cls,
        "output_dir": output,
        "max_train_steps": form.steps if form.steps is not None else steps,
        "seed": form.seed,
        "validation_prompt": form.prompt.strip() or default_prompts(form.subject)[1],
        "validation_steps": part,
        "num_validation_images": SAMPLES,
        "checkpointing_steps": part,
        "checkpoints_total_limit": 1,
        "resume_from_checkpoint": "latest",  # a new folder has none, and the run begins
    }
    return [f"--{name}={value}" for name, value in given.items()]


def plan(form: Form) -> list[str]:
    """What the base is, what it does not know, and what learns in each stage, in plain words, from the base's
    configuration files alone.

    Raises UserError as the command does for these settings. No image is read.
    """
    from utils.learners.registry import LEARNERS
    from utils.losses.registry import losses_of
    from utils.training.plan import attach_all
    from utils.training.preflight import check_learners, outline_of

    config = parse_config(flags_of(form, Path("unread"), Path("unwritten")))
    check_learners(config)
    attached = attach_all(outline_of(config), config)
    row = base_row(form.base)
    lines = [row.about or f"{row.title}."]
    for stage, first, last in config.plan():
        count = sum(value.numel() for name in stage.trains for value in attached[name].values())
        what = listed([LEARNERS[name].plain for name in stage.trains])
        line = f"Steps {first} to {last} learn {what}: {count:,} numbers."
        kept = [loss.plain or loss.name for loss in losses_of(config, stage) if loss.weight(config)]
        lines.append(line + "".join(f" {each[0].upper()}{each[1:]}." for each in kept))
    return lines


def unknown_to(base: str, words: Sequence[str], images: Sequence[Image.Image] = ()) -> str | None:
    """The line on classes and images that the base cannot learn, in the page's words; None where it may."""
    line = strangers(base_row(base), words, images)
    return in_words_of_the_page(line) if line else None


def in_words_of_the_page(message: str) -> str:
    """A command's message in one line, flags by the labels of their fields."""
    for flag, label in LABELS.items():
        message = re.sub(rf"{flag}(?![\w-])", label, message)
    return " ".join(message.split())

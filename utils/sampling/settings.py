"""How images and clips are drawn: the flags that both commands share, the schedulers, and their limits.

Knows no torch, so that a command can print its help or refuse a mistake without waiting for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from utils.bases.devices import DTYPES
from utils.bases.registry import BASES, Base, as_dict
from utils.common.errors import UserError
from utils.common.files import check_writable_folder
from utils.common.flags import check_fields, option, seed_option

# diffusers' class, and what overrides the base's config: latents are not confined to [-1, 1], and PNDM's
# Runge-Kutta start is not what Stable Diffusion uses. A config written for another scheduler says neither.
SCHEDULERS: dict[str, tuple[str, dict[str, bool]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
}
ADJUSTED_NORM = 0.5  # of an embedding adjustment, as published
BETA_SCHEDULES = ("linear", "scaled_linear")  # of motion adapters


def default_of(part: str, setting: str) -> str:
    """The defaults of a setting in the bases' rows, for --help; "" if there are none.

    part: of a row: "sampling" or "clips".
    """
    values = {name: getattr(getattr(row, part), setting, "") for name, row in BASES.items()}
    if not any(value != "" for value in values.values()):
        return ""
    usual = values["sd15"]
    others = [f"{_text(value)} with {name}" for name, value in values.items() if value != usual]
    return f"(default: {', '.join([_text(usual), *others])})"


def _text(value: Any) -> str:
    return (f"'{value}'" if value else "none") if isinstance(value, str) else f"{value:g}"


def _by_base(setting: str, text: str, **limits: Any) -> Any:
    """A setting that the base's row gives if the flag does not."""

    def help_of(config: type) -> str:
        return f"{text} {default_of(config.part, setting)}".rstrip()

    return option(None, help_of, **limits)


@dataclass(frozen=True)
class DrawingFlags:
    """The flags of a command that draws; None where the base or the machine decides.

    part: what the command draws, as a base's row calls it: "sampling" or "clips".
    """

    part: ClassVar[str] = "sampling"

    base: str | None = option(
        None, f"{', '.join(BASES)}, folder, .safetensors file or Hub id (default: the concept's, else toon)"
    )
    concept: tuple[Path, ...] = option((), "trained folder or file; repeatable")
    token: tuple[str, ...] = option(
        (), "what prompts call a --concept's only token; once for each (default: as its file says)"
    )
    prompt: tuple[str, ...] = option((), "repeatable (default: about the concept)")
    prompts_file: Path | None = option(None, "text file, one prompt per line; joins those of --prompt")
    negative_prompt: str | None = _by_base("negative_prompt", "what should not be shown", blank=True)
    seed: int = seed_option("image or clip i of a prompt uses seed + i")
    num_inference_steps: int | None = _by_base("num_inference_steps", "denoising steps", minimum=1)
    guidance_scale: float | None = _by_base("guidance_scale", "weight of the prompt", minimum=0)
    eta: float | None = _by_base("eta", "noise per step, 0 to 1; ddim only", minimum=0)
    scheduler: str = option("ddim", "sampler", choices=tuple(SCHEDULERS))
    output_dir: Path = option(Path("outputs"), "folder of the files")
    device: str | None = option(None, "cuda, mps or cpu (default: the first of them that is here)")
    dtype: str | None = option(None, "precision (default: fp16 on CUDA, else fp32)", choices=tuple(DTYPES))

    def __post_init__(self) -> None:
        check_fields(self)
        check_scheduler(self.scheduler, self.eta or 0.0)
        if self.negative_prompt and self.guidance_scale is not None and self.guidance_scale <= 1:
            raise UserError(
                f"--guidance_scale is {self.guidance_scale:g}; --negative_prompt has an effect only above 1"
            )
        check_writable_folder(self.output_dir, "output_dir")

    def settings(self, row: Base) -> dict[str, Any]:
        """Keyword arguments of `sample` or `sample_clips`: what was given, else what suits the base.

        Schedulers that know no eta get none, and without guidance there is no prompt to guide away from.
        """
        settings = {"negative_prompt": ""} | as_dict(getattr(row, self.part)) | {"scheduler": self.scheduler}
        if self.scheduler != "ddim":
            settings["eta"] = 0.0
        given = {name: getattr(self, name, None) for name in settings}
        settings |= {name: value for name, value in given.items() if value is not None}
        if settings["guidance_scale"] <= 1:
            settings["negative_prompt"] = ""
        return settings


def check_scheduler(name: str, eta: float) -> None:
    """Raises UserError for an unknown scheduler, an eta that it would ignore, or one outside [0, 1]."""
    if name not in SCHEDULERS:
        raise UserError(f"unknown scheduler {name!r}; choose one of {', '.join(SCHEDULERS)}")
    if name != "ddim" and eta != 0:
        raise UserError(f"scheduler {name} ignores eta, and eta is {eta:g}; use ddim or set eta to 0")
    if not 0 <= eta <= 1:
        raise UserError(f"eta is {eta:g}; it must be in [0, 1]: 0 is deterministic DDIM, 1 adds DDPM's noise")


def check_rotation(
    rotation: float | None, norm: float | None = None, classes: Mapping[str, str | None] | None = None
) -> None:
    """Raises UserError unless rotation and norm are None or in [0, 1], norm goes with a rotation, and every
    token has a class."""
    if rotation is None and norm is not None:
        raise UserError(
            "--embedding_adjustment_norm has no effect without --embedding_adjustment: leave it out"
        )
    if rotation is not None and not 0 <= rotation <= 1:
        raise UserError(f"--embedding_adjustment {rotation:g}: give a share of the angle in [0, 1]")
    if norm is not None and not 0 <= norm <= 1:
        raise UserError(f"--embedding_adjustment_norm {norm:g}: give a share of the length in [0, 1]")
    classes = classes or {}
    if nameless := [token for token, word in classes.items() if not word]:
        raise UserError(
            f"--embedding_adjustment needs a class for {nameless[0]}, and its concept records none: "
            "leave it out, or train with --cls_token"
        )


def check_steps(steps: int, base: str | Path, flag: str = "num_inference_steps") -> None:
    """Raises UserError for more denoising steps than the base was trained on; reads its scheduler's file."""
    from utils.bases.pretrained import base_config

    config = base_config(base, "scheduler/scheduler_config.json")
    known = config.get("num_train_timesteps", 1000)  # diffusers' default, which it may leave out
    if type(known) is not int:
        raise UserError(
            f"base model {base}: its scheduler's num_train_timesteps must be a number; the model is damaged"
        )
    if steps > known:
        raise UserError(f"--{flag} is {steps}; {base} has {known} timesteps: give at most that")

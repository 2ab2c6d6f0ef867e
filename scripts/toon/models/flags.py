"""The flags that toon's training programs share. Knows no torch."""

from dataclasses import dataclass, fields
from pathlib import Path

from utils.common.errors import UserError
from utils.common.flags import check_fields, option, seed_option


@dataclass(frozen=True)
class TrainingFlags:
    """A program adds its own output_dir, steps, batch_size and lr, with their defaults.

    Of a field, exists=True is the fact that its folder must be there; multiple=n that its number must be a
    multiple of n. Raises UserError where a field is not what it must be.
    """

    work_dir: Path = option(Path("toon_build"), "checkpoints")
    resolution: int = option(64, "side of the images", minimum=8, multiple=8)
    seed: int = seed_option("seed of every draw")

    def __post_init__(self) -> None:
        check_fields(self)
        for each in fields(self):
            value, multiple = getattr(self, each.name), each.metadata.get("multiple", 1)
            if each.metadata.get("exists") and value is not None and not value.is_dir():
                raise UserError(f"--{each.name} {value} is no folder: give one, or leave it out")
            if isinstance(value, int) and value % multiple:
                raise UserError(f"--{each.name} {value}: give a multiple of {multiple}")


def steps_option(default: int):
    return option(default, "optimizer steps", minimum=1)


def rate_option(default: float):
    return option(default, "highest learning rate", above=0)


def init_option():
    return option(None, "start from the model in this folder", exists=True)

"""The flags of the commands of scripts.toon.build. Knows no torch."""

from dataclasses import dataclass, fields
from pathlib import Path

from utils.common.errors import UserError
from utils.common.flags import check_fields, option, seed_option


@dataclass(frozen=True)
class TrainingFlags:
    """A command adds its own output_dir, steps, batch_size and lr, with their defaults.

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
                raise UserError(f"--{each.name} {value} is not a folder: give one, or leave it out")
            if isinstance(value, int) and value % multiple:
                raise UserError(f"--{each.name} {value}: give a multiple of {multiple}")


def steps_option(default: int):
    return option(default, "optimizer steps", minimum=1)


def rate_option(default: float):
    return option(default, "highest learning rate", above=0)


def bf16_option():
    return option(False, "autocast: for a GPU, or a CPU with bf16 arithmetic")


def init_option():
    return option(None, "start from the model in this folder", exists=True)


@dataclass(frozen=True)
class ExamplesFlags:
    output_dir: Path = option(Path("data"), "folder of the concepts' folders")
    resolution: int = option(256, "side of the images", minimum=8)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class TokenizerFlags:
    output_dir: Path = option(Path("data/toon/sd/tokenizer"), "folder of the tokenizer")


@dataclass(frozen=True)
class AutoencoderFlags(TrainingFlags):
    output_dir: Path = option(Path("data/toon/sd/vae"), "folder of the model")
    steps: int = steps_option(8000)
    batch_size: int = option(8, "images a step", minimum=1)
    lr: float = rate_option(1e-3)
    decoder_of: Path | None = option(
        None,
        "train the decoder of the model in this folder; latents stay as they are",
        exists=True,
    )


@dataclass(frozen=True)
class ClipFlags(TrainingFlags):
    output_dir: Path = option(Path("data/toon"), "folder of clip and sd; sd/tokenizer is there already")
    steps: int = steps_option(2000)
    batch_size: int = option(128, "images a step: scenes and their twins", minimum=2, multiple=2)
    lr: float = rate_option(1e-3)
    init_from: Path | None = init_option()


@dataclass(frozen=True)
class RecogniserFlags(TrainingFlags):
    output_dir: Path = option(Path("data/toon/recogniser"), "folder of the model")
    steps: int = steps_option(1500)
    batch_size: int = option(64, "images a step", minimum=2, multiple=2)
    lr: float = rate_option(2e-3)
    init_from: Path | None = init_option()


@dataclass(frozen=True)
class BlipFlags(TrainingFlags):
    output_dir: Path = option(Path("data/toon/blip"), "folder of the model")
    steps: int = steps_option(4000)
    batch_size: int = option(48, "images a step, a multiple of 4", minimum=4, multiple=4)
    lr: float = rate_option(7e-4)


@dataclass(frozen=True)
class DinoFlags(TrainingFlags):
    output_dir: Path = option(Path("data/toon/dino"), "folder of the model")
    steps: int = steps_option(1600)
    batch_size: int = option(64, "images a step: two of each individual", minimum=4, multiple=4)
    lr: float = rate_option(1e-3)


@dataclass(frozen=True)
class UnetRecipeFlags(TrainingFlags):
    """What the UNet learns from and how; `all` takes these too."""

    images: int = option(20_000, "distinct training scenes", minimum=1)
    channels: tuple[int, ...] = option((64, 128, 192), "of each level", minimum=16, several=True)
    steps: int = steps_option(10_000)
    batch_size: int = option(16, "images a step", minimum=1)
    lr: float = rate_option(6e-4)
    align_weight: float = option(0.5, "of the alignment; 0: none", minimum=0)
    subject_weight: float = option(4.0, "of the loss where the subject is", minimum=1)
    part_emphasis: float = option(2.5, "how much more of it where a part is that captions name", minimum=1)
    alone: float = option(0.0, "share of scenes that show an animal alone", minimum=0, below=1)
    bf16: bool = bf16_option()
    low_timesteps: bool = option(False, "most draws at little noise")
    compile: bool = option(False, "a sixth faster, needs a C++ compiler")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.channels) < 2 or any(width % 16 for width in self.channels):
            raise UserError(
                f"--channels {' '.join(map(str, self.channels))}: give two or more multiples of 16"
            )


@dataclass(frozen=True)
class UnetFlags(UnetRecipeFlags):
    output_dir: Path = option(Path("data/toon/sd"), "pipeline without its UNet", exists=True)
    features_of: Path = option(Path("data/toon/clip"), "DINO or CLIP whose features to hold", exists=True)
    init_from: Path | None = init_option()


@dataclass(frozen=True)
class MotionFlags(TrainingFlags):
    base: Path = option(Path("data/toon/sd"), "pipeline whose UNet is animated", exists=True)
    output_dir: Path = option(Path("data/toon/motion_adapter"), "folder of the model")
    clips: int = option(4000, "distinct training clips", minimum=1)
    steps: int = steps_option(10000)
    batch_size: int = option(2, "clips a step", minimum=1)
    lr: float = rate_option(1e-3)
    init_from: Path | None = init_option()


@dataclass(frozen=True)
class PartReaderFlags(TrainingFlags):
    output_dir: Path = option(Path("data/toon/part_reader"), "folder of the model")
    recogniser: Path = option(Path("data/toon/recogniser"), "what it begins as", exists=True)
    steps: int = steps_option(1500)
    batch_size: int = option(64, "images a step", minimum=2)
    lr: float = rate_option(2e-3)
    bf16: bool = bf16_option()

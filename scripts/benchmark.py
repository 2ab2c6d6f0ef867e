"""Time and memory of what this repository does, on this machine.

python -m scripts.benchmark train --base sd15
python -m scripts.benchmark growth --base toon

Bases have random weights, which the command makes: what weights say changes neither time nor memory.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.speed.bases import SHAPES, default_resolution
from utils.bases.registry import base_row
from utils.common.errors import UserError, exit_on_user_error
from utils.common.files import append_records, check_writable_folder, read_records, shown
from utils.common.flags import check_fields, option
from utils.common.subcommands import Subcommand, run_subcommand
from utils.scores.judges import KINDS, judge_flags
from utils.scores.table import SCORES

TIMED_JUDGES = ("clip", "dino", "blip", "siglip")
JudgeFlags = judge_flags(KINDS[kind] for kind in TIMED_JUDGES)
TIMED_SCORES = [name for name in SCORES if SCORES[name].judge in (None, *TIMED_JUDGES)]


@dataclass(frozen=True)
class RandomBaseFlags:
    """The base of every benchmark that trains or samples."""

    base: str = option("toon", "whose shape", choices=SHAPES)
    rounds: int = option(5, "timed rounds of each", minimum=1)
    work_dir: Path | None = option(None, "folder of the base (default: outputs/benchmark/<base>)")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.work_dir is not None:
            check_writable_folder(self.work_dir, "work_dir")

    @property
    def side(self) -> int:
        """Of the images, in pixels."""
        return default_resolution(self.base)


@dataclass(frozen=True)
class StepFlags(RandomBaseFlags):
    """Of benchmarks that time training steps and keep their records."""

    minutes: float | None = option(None, "begin nothing new after this time", above=0)
    json: Path | None = option(None, "file to append one line of JSON to (default: printed)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.json is not None:
            check_writable_folder(self.json.parent, "json")
            if self.json.is_dir():
                raise UserError(f"--json {shown(self.json)} is a folder: give a file")
            read_records(self.json)  # a file of something else is refused, not appended to


@dataclass(frozen=True)
class TrainFlags(StepFlags):
    variants: str | None = option(None, "words of the variants' names, joined by commas (default: all)")
    resolution: int | None = option(None, "side of the images (default: the base model's)", minimum=8)
    batch_size: int = option(2, "instance images per step", minimum=1)
    concepts: int = option(1, "concepts that are learned", minimum=1, below=5)

    @property
    def side(self) -> int:
        return self.resolution or default_resolution(self.base)


@dataclass(frozen=True)
class GrowthFlags(StepFlags):
    output_dir: Path = option(Path("results/speed"), "folder of the table and the plot")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_writable_folder(self.output_dir, "output_dir")


@dataclass(frozen=True)
class SampleFlags(RandomBaseFlags):
    num_inference_steps: int = option(10, "denoising steps", minimum=1)


@dataclass(frozen=True)
class EvaluateFlags(JudgeFlags):
    images: int = option(1000, "images that are scored", minimum=1)
    metrics: str | None = option(
        None, f"joined by commas (default: those of {','.join(TIMED_SCORES)} that toon has judges for)"
    )
    blip_head: str = option("itc", "itc or itm")

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def known_metrics(self) -> list[str]:
        return TIMED_SCORES

    @property
    def models(self) -> dict[str, str]:
        """The judges: those of the flags, else toon's."""
        given = {kind: getattr(self, kind) for kind in TIMED_JUDGES}
        return base_row("toon").judges | {kind: value for kind, value in given.items() if value}


def train(config: TrainFlags) -> None:
    from scripts.speed.compare import compare

    _record(config, compare, config.batch_size)


def growth(config: GrowthFlags) -> None:
    from scripts.speed.growth import growth

    _record(config, growth, None)


def _record(
    config: StepFlags, measure: Callable[[Any], list[dict[str, Any]]], batch_size: int | None
) -> None:
    """Measures, then prints or appends the line of JSON. batch_size: None where it varies."""
    from scripts.speed.compare import as_record

    record = as_record(config, measure(config), batch_size)
    if config.json is None:
        print(json.dumps(record))
    else:
        append_records(config.json, [record])


def sample(config: SampleFlags) -> None:
    from scripts.speed.sampling import compare_sampling

    compare_sampling(config)


def evaluate(config: EvaluateFlags) -> None:
    from scripts.speed.scoring import benchmark_evaluate

    benchmark_evaluate(config)


SUBCOMMANDS = {
    "train": Subcommand(TrainFlags, train, "the training step against that of the published scripts"),
    "growth": Subcommand(GrowthFlags, growth, "how the step's time and memory grow: a table and a plot"),
    "sample": Subcommand(SampleFlags, sample, "sampling with a concept against sampling the base"),
    "evaluate": Subcommand(EvaluateFlags, evaluate, "images of toon through every metric"),
}


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    run_subcommand(SUBCOMMANDS, argv, __doc__, "python -m scripts.benchmark")


if __name__ == "__main__":
    exit_on_user_error(main)

"""Time and memory of what this repository does, on this machine.

python -m scripts.benchmark train --base sd15    the training step beside that of the published scripts
python -m scripts.benchmark growth --base toon   how the step's time and memory grow: a table and a plot
python -m scripts.benchmark sample               sampling with a concept beside sampling the base
python -m scripts.benchmark evaluate             1,000 toon images through every metric

Bases have random weights, which the command makes: what weights say changes neither time nor memory.
"""

import json
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from scripts.speed.bases import SHAPES, default_resolution
from utils.bases.registry import base_row
from utils.common.errors import UserError, exit_on_user_error
from utils.common.files import append_records, check_writable_folder, read_records, shown
from utils.common.flags import check_fields, option, parse
from utils.scores.table import SCORES

COMMANDS = ("train", "growth", "sample", "evaluate")
TOON = base_row("toon")


@dataclass(frozen=True)
class BenchmarkConfig:
    command: str = option(MISSING, "what to time", choices=COMMANDS, positional=True)
    base: str = option("toon", "train, growth, sample: whose shape", choices=SHAPES)
    rounds: int = option(5, "train, growth, sample: timed rounds of each", minimum=1)
    minutes: float | None = option(None, "train, growth: begin nothing new after this time", above=0)
    variants: str | None = option(
        None, "train: words of the variants' names, joined by commas (default: all)"
    )
    resolution: int | None = option(None, "train: side of the images (default: the base model's)", minimum=8)
    batch_size: int = option(2, "train: instance images per step", minimum=1)
    concepts: int = option(1, "train: concepts that are learned", minimum=1, below=5)
    json: Path | None = option(None, "train, growth: file to append one line of JSON to (default: printed)")
    work_dir: Path | None = option(
        None, "train, growth, sample: folder of the base (default: outputs/benchmark/<base>)"
    )
    output_dir: Path = option(Path("results/speed"), "growth: folder of the table and the plot")
    num_inference_steps: int = option(10, "sample: denoising steps", minimum=1)
    images: int | None = option(None, "evaluate: images that are scored (default: 1000)", minimum=1)
    metrics: str = option(",".join(SCORES), "evaluate: joined by commas")
    clip: str = option(TOON.judges["clip"], "evaluate: CLIP of CLIP-T and CLIP-I")
    dino: str = option(TOON.judges["dino"], "evaluate: DINO of DINO-I, PRES and DIV")
    blip: str = option(TOON.judges["blip"], "evaluate: BLIP of BLIP-T")
    blip_head: str = option("itc", "evaluate: itc or itm")

    def __post_init__(self) -> None:
        check_fields(self)
        for each in fields(self):
            only = each.metadata["help"].partition(":")[0].split(", ")
            other = set(only) <= set(COMMANDS) and self.command not in only
            if other and getattr(self, each.name) != each.default:
                raise UserError(f"--{each.name} has no effect on {self.command}: leave it out")

    @property
    def side(self) -> int:
        return self.resolution or default_resolution(self.base)


def main(argv: list[str] | None = None) -> None:
    config = parse(BenchmarkConfig, argv, __doc__)
    for flag in ("work_dir", "output_dir"):
        if getattr(config, flag) is not None:
            check_writable_folder(getattr(config, flag), flag)
    if config.json is not None:
        check_writable_folder(config.json.parent, "json")
        if config.json.is_dir():
            raise UserError(f"--json {shown(config.json)} is a folder: give a file")
        read_records(config.json)  # a file of something else is refused, not appended to
    if config.command == "evaluate":
        from scripts.speed.scoring import benchmark_evaluate

        benchmark_evaluate(config)
    elif config.command == "sample":
        from scripts.speed.sampling import compare_sampling

        compare_sampling(config)
    else:
        from scripts.speed.compare import as_record, compare
        from scripts.speed.growth import growth

        record = as_record(config, (compare if config.command == "train" else growth)(config))
        if config.json is None:
            print(json.dumps(record))
        else:
            append_records(config.json, [record])


if __name__ == "__main__":
    exit_on_user_error(main)

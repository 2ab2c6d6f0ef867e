"""What training flags change on toon: the same individuals with and without them, pair by pair.

python -m scripts.toon.compare_flags --flags="--latent_pool=20" --both=--no_noaug

Each individual is trained once by toon's preset and once with the flags, judged as
scripts/toon/tune.py judges, after all steps. The differences are means over the individuals with 95 %
paired t intervals. The individuals are those of tuning, from number 10 on, which no setting was chosen on.
"""

import shlex
import time
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.toon.judge.tuning_training import BASE, Individual, individual, steps_of, train
from utils.common.errors import UserError, exit_on_user_error, short
from utils.common.files import check_writable_folder, read_json, write_json
from utils.common.flags import check_fields, option, parse
from utils.config.methods import METHODS

if TYPE_CHECKING:
    from scripts.toon.judge.tuning_judge import Judge

FIRST = 10
SHARES = ("obeyed", "likeness", "score")


@dataclass(frozen=True)
class Flags:
    """The flags of this command."""

    flags: str = option(MISSING, 'training flags in one string, as in "--ema_decay=0.99 --hflip"')
    both: str = option("", "training flags of both sides, as in --both=--no_noaug", blank=True)
    method: str = option("kv_only", "the method of both sides", choices=tuple(METHODS))
    individuals: int = option(4, "how many", minimum=2)
    output_dir: Path = option(Path("outputs/compare_flags"), "trainings and numbers")

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("flags", "both"):
            try:
                shlex.split(getattr(self, name))
            except ValueError as error:
                raise UserError(f"--{name} {short(getattr(self, name))}: {error}") from None


def folder_of(config: Flags, flags: Sequence[str]) -> Path:
    """Where the trainings with these flags lie."""
    return config.output_dir / "_".join([config.method, *flags]).replace("/", "-")


def shares_of(
    config: Flags, judge: "Judge", each: Individual, folder: Path, flags: Sequence[str]
) -> dict[str, float]:
    """The judge's shares of one training, and its seconds; what is judged is not trained again."""
    record = folder / "judged.json"
    if not record.is_file():
        start = time.monotonic()
        train(config.method, flags, each, folder, config.output_dir / "class_images")
        seconds = time.monotonic() - start
        write_json(record, judge(config.method, each, folder) | {"seconds": seconds})
    return read_json(record)


def main(argv: list[str] | None = None) -> None:
    config = parse(Flags, argv, __doc__)
    check_writable_folder(config.output_dir, "output_dir")
    from scripts.toon.judge.tuning_judge import Judge
    from utils.scores.statistics import paired_interval

    judge = Judge(BASE)
    both = shlex.split(config.both)
    changed = [*both, *shlex.split(config.flags)]
    sides = {"as_set": (folder_of(config, both), both), "changed": (folder_of(config, changed), changed)}
    shares: dict[str, dict[int, dict[str, float]]] = {side: {} for side in sides}
    for number in range(FIRST, FIRST + config.individuals):
        each = individual(number, config.output_dir)
        for side, (folder, flags) in sides.items():
            shares[side][number] = shares_of(config, judge, each, folder / str(number), flags)
            print(f"{side} {number}: {shares[side][number]}", flush=True)
    result = {"flags": config.flags, "both": config.both, "method": config.method}
    result |= {"steps": steps_of(config.method), "individuals": config.individuals, "seed": 0}
    for share in SHARES:
        columns = {side: {n: one[share] for n, one in every.items()} for side, every in shares.items()}
        means = {side: sum(column.values()) / len(column) for side, column in columns.items()}
        result[share] = means | {"difference": asdict(paired_interval(columns["changed"], columns["as_set"]))}
        change = result[share]["difference"]
        print(
            f"{share}: {means['as_set']:.3f} as set, {means['changed']:.3f} with {config.flags}: "
            f"{change['mean']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}], n = {config.individuals}"
        )
    file = config.output_dir / f"{folder_of(config, changed).name}.json"
    write_json(file, result)
    print(f"the numbers are in {file}")


if __name__ == "__main__":
    exit_on_user_error(main)

"""Choose each method's training settings on toon by one rule, the same for all, on individuals made for it.

The rule, fixed before its results but for the second sentence of 1 (see scripts/toon/LOG.md):
1. Every learning rate that toon's preset names for a method takes three values, a factor of √10
   apart, round the one that stands there: 3 settings, or 9. ClassDiffusion and Custom Diffusion are K/V only
   with one more loss, so they take its best rates: what they differ in is then that loss.
2. Each setting personalises the same tuning individuals, which are neither examples nor in the benchmark,
   with one seed, and is judged after ¼, ½, ¾ and all of its steps.
3. A point's score is the mean over the individuals of the harmonic mean of two shares: of images that obey
   every word of their prompt, as the recogniser reads them, and of the way from the base's likeness to that
   of the individual's own images, (DINO-I − base) / (real − base), from 0 to 1.
4. If the best setting has a rate at the end of its three, that rate goes one value further, once.
5. At the best rates the weight of a method's own loss takes its published value, 1, and four more.

Every point is kept and none is computed twice: a killed run goes on, on another machine from the points in
--output_dir.

python -m scripts.toon.tune --methods kv_only,classdiffusion
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.toon.judge.tuning_training import (
    BASE,
    QUARTERS,
    Individual,
    given_of,
    individual,
    steps_of,
    train,
)
from utils.common.errors import UserError, exit_on_user_error
from utils.common.files import read_json, write_json
from utils.common.flags import check_fields, option, parse
from utils.config.methods import METHODS

if TYPE_CHECKING:
    from scripts.toon.judge.tuning_judge import Judge

RATES = ("learning_rate", "token_learning_rate")
STEP = 10**0.5
PRIOR_WEIGHTS = ("prior_loss_weight", (0.1, 0.3, 3.0, 10.0))
RATES_OF = {"classdiffusion": "kv_only", "custom_diffusion": "kv_only"}
WEIGHTS = {
    "classdiffusion": ("spl_weight", (0.1, 0.3, 3.0, 10.0)),
    "custom_diffusion": PRIOR_WEIGHTS,
    "dreambooth": PRIOR_WEIGHTS,
    "svdiff": PRIOR_WEIGHTS,
}
Setting = dict[str, float]  # flag -> value


@dataclass(frozen=True)
class Flags:
    """The flags of this command."""

    methods: str = option(",".join(METHODS), "methods by name, joined by commas")
    individuals: int = option(3, "how many tuning individuals", minimum=1)
    output_dir: Path = option(Path("results/toon_tuning"), "all points, a file for each method")
    work_dir: Path = option(Path("outputs/tuning"), "images, trainings and class images")

    def __post_init__(self) -> None:
        check_fields(self)
        if unknown := [name for name in self.methods.split(",") if name not in METHODS]:
            raise UserError(f"--methods has {unknown[0]}, which is unknown; choose from {', '.join(METHODS)}")


def centre_of(method: str) -> Setting:
    """The rates that toon's preset names for a method."""
    given = given_of(method)
    return {name: given[name] for name in RATES if name in given}


def grid(centre: Setting) -> list[Setting]:
    """Three values of each rate: 3 settings for one, 9 for two."""
    values = [[rate / STEP, rate, rate * STEP] for rate in centre.values()]
    return [dict(zip(centre, chosen, strict=True)) for chosen in itertools.product(*values)]


def extensions(best: Setting, centre: Setting) -> Iterator[Setting]:
    """The best setting with one rate a step beyond the end at which it stands, for each such rate."""
    for name, middle in centre.items():
        if best[name] != middle:
            further = best[name] * STEP if best[name] > middle else best[name] / STEP
            yield best | {name: further}


def name_of(setting: Setting) -> str:
    return "_".join(f"{flag}={value:.3g}" for flag, value in setting.items())


def is_same(one: Setting, other: Setting) -> bool:
    """Whether two settings differ by no more than the rounding of a rate in toon's preset."""
    return one.keys() == other.keys() and all(
        math.isclose(value, other[flag], rel_tol=0.01) for flag, value in one.items()
    )


def points_of(
    method: str, setting: Setting, individuals: Sequence[Individual], work: Path, judge: "Judge"
) -> list[dict[str, Any]]:
    """A setting's points: steps, score and its two shares, means over the individuals and each one's."""
    per_step: dict[int, list[dict[str, float]]] = {}
    for each in individuals:
        folder = work / method / name_of(setting) / str(each.number)
        record = folder / "judged.json"
        if not record.is_file():
            # its own loss at its published weight unless the setting names one
            weight = {WEIGHTS[method][0]: 1.0} if method in WEIGHTS else {}
            flags = [f"--{flag}={value}" for flag, value in (weight | setting).items()]
            train(method, flags, each, folder, work / "class_images")
            quarter = steps_of(method) // QUARTERS
            steps = [quarter * (i + 1) for i in range(QUARTERS)]
            write_json(record, {str(n): judge(method, each, folder / f"checkpoint-{n}") for n in steps})
        for step, shares in read_json(record).items():
            per_step.setdefault(int(step), []).append(shares)
    return [
        {"method": method, "setting": setting, "steps": step, "individuals": shares}
        | {name: sum(each[name] for each in shares) / len(shares) for name in shares[0]}
        for step, shares in sorted(per_step.items())
    ]


def inherited(method: str, results: Path) -> Setting:
    """The best rates of the method whose rates this one takes, the same after --scale_lr.

    Raises UserError if that method has not been tuned.
    """
    source = RATES_OF[method]
    points = recorded(source, results)
    if not points:
        raise UserError(
            f"--methods {method} takes the rates of {source}, untuned in {results}: tune it first"
        )
    prior = METHODS[method].stages[-1].prior and METHODS[method].prior_doubles_rate
    return {rate: value / (2 if prior else 1) for rate, value in points[0]["setting"].items()}


def recorded(method: str, results: Path) -> list[dict[str, Any]]:
    """The points of a method that earlier runs left. Raises UserError for a damaged file."""
    path = results / f"{method}.json"
    return read_json(path)["points"] if path.is_file() else []


def tune(
    method: str, individuals: Sequence[Individual], work: Path, judge: "Judge", results: Path
) -> list[dict[str, Any]]:
    """All points of a method, by the rule; the best comes first, those that only earlier runs tried last.

    results: where the points of all methods are, and these are written after every setting.
    """
    points: list[dict[str, Any]] = []
    earlier = recorded(method, results)

    def kept() -> list[dict[str, Any]]:
        best = max(points, key=lambda point: point["score"])
        names = {name_of(point["setting"]) for point in points}
        others = [point for point in earlier if name_of(point["setting"]) not in names]
        return [best, *(point for point in points if point is not best), *others]

    def try_all(settings: Sequence[Setting]) -> dict[str, Any]:
        for setting in settings:
            known = [
                point
                for point in earlier
                if is_same(point["setting"], setting) and len(point["individuals"]) == len(individuals)
            ]
            points.extend(known or points_of(method, setting, individuals, work, judge))
            write_json(results / f"{method}.json", {"points": kept()})
            best = max(points[-QUARTERS:], key=lambda point: point["score"])
            print(
                f"{method} {name_of(setting)}: score {best['score']:.3f} at {best['steps']} steps "
                f"(obeyed {best['obeyed']:.1%}, likeness {best['likeness']:.3f})",
                flush=True,
            )
        return max(points, key=lambda point: point["score"])

    if method in RATES_OF:
        best = try_all([inherited(method, results)])
    else:
        best = try_all(grid(centre_of(method)))
        best = try_all(list(extensions(best["setting"], centre_of(method))))
    if method in WEIGHTS:
        flag, values = WEIGHTS[method]
        try_all([best["setting"] | {flag: value} for value in values])
    return kept()


def main(argv: list[str] | None = None) -> None:
    config = parse(Flags, argv, __doc__)
    from scripts.toon.judge.tuning_judge import Judge
    from scripts.toon.judge.tuning_plot import draw_points

    judge = Judge(BASE)
    individuals = [individual(i, config.work_dir) for i in range(config.individuals)]
    for method in config.methods.split(","):
        best = tune(method, individuals, config.work_dir, judge, config.output_dir)[0]
        lines = [f"{flag} = {value:.3g}" for flag, value in best["setting"].items()]
        print(
            f"{method}: score {best['score']:.3f} with {', '.join(lines)}, max_train_steps = "
            f"{best['steps']}; these belong into [{method}] of scripts/presets/toon.toml"
        )
    charts = draw_points(config.output_dir)
    print(f"every point is in {config.output_dir}, all of them in {charts[0]} and {charts[1]}")


if __name__ == "__main__":
    exit_on_user_error(main)

"""The plan of a study, a TOML file: which trainings, how long, with what, judged where.

seeds = [0, 1, 2]          # of trainings
steps = 4                  # a training's length, in multiples of the preset's
checkpoints = 8            # judged in each training, evenly spaced
rates = [1, 2]             # multiples of the preset's learning rates
reference = "kv_only"      # the variant that the others are compared with at equal likeness
lost = 0.1                 # composition counts as lost below 90 % of the base's words

[data.toon]                # a benchmark and the flags of scripts.evaluate for it; the first is the default
subjects = ["dog_4", "cat_5"]
num_images = 1

[arms.kv_only]             # `method`, here the arm's name; `rates`, `steps`, `checkpoints` of its own

[arms.classdiffusion]
spl_weight = [0.1, 1, 10]  # any flag of train_classdiffusion.py; of lists, every combination is a variant
embedding_adjustment = 0.2 # each checkpoint is judged once more, with this adjustment

Imports no torch, so that a mistake is answered at once.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

from utils.common.config_file import read_table, refuse_key, typed_values
from utils.common.errors import UserError, short
from utils.common.files import shown
from utils.config.methods import METHODS
from utils.config.train_config import TrainConfig
from utils.evaluation.config import EvaluationConfig

OWN = ("method", "rates", "steps", "checkpoints", "embedding_adjustment")  # keys of an arm that are no flags
PER_RUN = ("seed", "resume_from_checkpoint", "checkpoints_total_limit", "overwrite", "dry_run")
DATA = ("subjects", "metrics", "max_prompts", "num_images", "num_class_images", "seed") + (
    "num_inference_steps",
    "guidance_scale",
    "eta",
)


@dataclass(frozen=True)
class Variant:
    """One setting of an arm. flags: of the training. rate, steps: multiples of the preset's.

    adjustment: the share of the angle of an embedding adjustment, with which each checkpoint is judged once
    more; None without.
    """

    name: str
    arm: str
    method: str
    flags: tuple[str, ...]
    rate: float
    steps: float
    checkpoints: int
    adjustment: float | None


@dataclass(frozen=True)
class Plan:
    """data: benchmark -> the flags of its evaluation. Other fields as in the file."""

    path: Path
    seeds: tuple[int, ...]
    reference: str
    lost: float
    data: dict[str, dict[str, Any]]
    variants: tuple[Variant, ...]


def read_plan(path: Path, arms: Sequence[str] = ()) -> Plan:
    """The plan of a file, or its arms of these names and the reference's. Raises UserError for whatever in it
    is not as above; the training flags' own limits are checked with the base (`trainings_of`)."""
    table, where = read_table("plan", path), shown(path)
    known = ("seeds", "steps", "checkpoints", "rates", "reference", "lost", "data", "arms")
    for name in table:
        if name not in known:
            refuse_key(where, name, known, f"it has {', '.join(known)}")
    for name in ("data", "arms"):
        if not isinstance(table.get(name), dict) or not table[name]:
            raise UserError(f"{where} has no [{name}.…]: see the head of utils/study/plan.py")
    common = {"steps": 1, "checkpoints": 4, "rates": [1]} | {k: table[k] for k in OWN if k in table}
    variants = [v for name, arm in table["arms"].items() for v in _variants(where, name, arm, common)]
    names = [variant.name for variant in variants]
    reference = table.get("reference", names[0])
    if reference not in names:
        raise UserError(f"{where}: reference {short(repr(reference))} is none of {', '.join(names)}")
    if unknown := [name for name in arms if name not in table["arms"]]:
        raise UserError(f"--arms {short(unknown[0])} is not in {where}; it has {', '.join(table['arms'])}")
    kept = [v for v in variants if not arms or v.arm in arms or v.name == reference]
    seeds = _list(where, "seeds", table.get("seeds", [0]), int, least=0)
    lost = _number(where, "lost", table.get("lost", 0.1), most=1)
    data = {name: _data(f"{where}: [data.{name}]", each) for name, each in table["data"].items()}
    return Plan(path, tuple(seeds), reference, lost, data, tuple(kept))


def _data(where: str, table: Any) -> dict[str, Any]:
    """The flags of an evaluation; lists of names joined by commas, as the command takes them."""
    if not isinstance(table, dict):
        raise UserError(f"{where} must be a table")
    for name in table:
        if name not in DATA:
            refuse_key(where, name, DATA, f"it takes {', '.join(DATA)}")
    joined = {k: ",".join(map(str, v)) if isinstance(v, list) else v for k, v in table.items()}
    return typed_values(EvaluationConfig, joined, where)


def _variants(where: str, name: str, arm: Any, common: dict[str, Any]) -> list[Variant]:
    where = f"{where}: [arms.{name}]"
    if not isinstance(arm, dict) or not re.fullmatch(r"[\w-]+", name):
        raise UserError(f"{where} must be a table whose name has letters, digits, _ and - alone")
    settings = common | {key: arm[key] for key in OWN if key in arm}
    method = settings.get("method", name)
    if method not in METHODS:
        raise UserError(f"{where}: method {short(repr(method))} is unknown: give one of {', '.join(METHODS)}")
    taken = {each.name for each in fields(TrainConfig) if each.metadata.get("set_by_evaluation")}
    grid = {key: value if isinstance(value, list) else [value] for key, value in arm.items()}
    grid = {key: values for key, values in grid.items() if key not in OWN}
    for key, values in grid.items():
        if key in taken or key in PER_RUN:
            raise UserError(f"{where}: {key} is set by the study: leave it out")
        if not values:
            raise UserError(f"{where}: {key} is an empty list: give a value")
        for value in values:
            typed_values(TrainConfig, {key: value}, where)
    rates = _list(where, "rates", settings["rates"], float, above=0)
    adjustment = settings.get("embedding_adjustment")
    if adjustment is not None:
        adjustment = _number(where, "embedding_adjustment", adjustment, most=1)
    found = []
    for rate, *values in product(rates, *grid.values()):
        pairs = dict(zip(grid, values, strict=True))
        told = [f"{key}={value}" for key, value in pairs.items() if isinstance(arm[key], list)]
        told += [f"rate={rate:g}"] if len(rates) > 1 else []
        found.append(
            Variant(
                name=re.sub(r"[^\w.,=+-]+", "-", ",".join([name, *told])),
                arm=name,
                method=method,
                flags=tuple(_flag(key, value) for key, value in pairs.items()),
                rate=rate,
                steps=_number(where, "steps", settings["steps"], above=0),
                checkpoints=_list(where, "checkpoints", [settings["checkpoints"]], int, least=1)[0],
                adjustment=adjustment,
            )
        )
    return found


def _flag(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{key}" if value else f"--no_{key}"
    return f"--{key}={value}"


def _number(
    where: str, name: str, value: Any, above: float | None = None, most: float | None = None
) -> float:
    return _list(where, name, [value], float, 0, above, most)[0]


def _list(
    where: str,
    name: str,
    values: Any,
    kind: type,
    least: float = 0,
    above: float | None = None,
    most: float | None = None,
) -> list:
    """The numbers of a list, distinct and within their limits. Raises UserError for anything else."""
    numbers = isinstance(values, list) and values and all(type(v) in (int, kind) for v in values)
    within = numbers and all(
        v >= least and (above is None or v > above) and (most is None or v <= most) for v in values
    )
    if not within or len(set(values)) < len(values):
        limit = f"above {above:g}" if above is not None else f"from {least:g}"
        limit += "" if most is None else f" to {most:g}"
        raise UserError(
            f"{where}: {name} is {short(repr(values))}; give distinct "
            f"{'whole numbers' if kind is int else 'numbers'} {limit}"
        )
    return [kind(value) for value in values]

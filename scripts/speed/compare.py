"""Variants of a training step against the reference step, round by round in alternation.

The reference of a precision stays loaded while each variant in turn runs against it; only one of the two
works at a time. Every variant has a process of its own, so memory is its own.
"""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from scripts.speed.bases import random_base, random_concepts, training_arguments
from scripts.speed.variants import VARIANTS, Variant, Worker, ceiling, work_folder
from utils.common.errors import UserError

if TYPE_CHECKING:
    from scripts.benchmark import StepFlags, TrainFlags

ENCODED_FOR = 500  # optimizer steps over which encoding the images is spread


def compare(config: "TrainFlags") -> list[dict[str, Any]]:
    """Runs the variants and prints a line each as it is measured; returns their records.

    config: scripts/benchmark.py's. Ctrl-C, or the end of the time budget, ends it with what there is.
    """
    variants = chosen(config.variants)  # a mistaken name is answered before anything is measured
    precisions = {"fp32": "float32", "bf16": "bfloat16"}
    used = {precision_of(each.name) for each in variants}
    ceilings = {name: ceiling(dtype) for name, dtype in precisions.items() if name in used}
    print(
        "matrix product: " + ", ".join(f"{name} {rate / 1e12:.4f} TFLOP/s" for name, rate in ceilings.items())
    )
    records: list[dict[str, Any]] = []
    until = time.monotonic() + 60 * config.minutes if config.minutes else float("inf")
    with TemporaryDirectory() as folder:
        arguments = prepare(config, Path(folder))
        print(
            f"{'variant':30} s/step (range)          ratio (range)      peak     "
            "first step  checkpoint  of ceiling"
        )
        try:
            for reference in [each for each in variants if each.against is None]:
                group = [each for each in variants if each.against == reference.name]
                measure_group(reference, group, arguments, config.rounds, until, ceilings, records)
        except KeyboardInterrupt:
            print("stopped; this is what was measured")
    return records


def chosen(names: str | None) -> list[Variant]:
    """The variants of these comma-separated names, or whose names hold one of them, with their references.

    Raises UserError where a name fits none.
    """
    if names is None:
        return list(VARIANTS)
    wanted: list[Variant] = []
    for name in map(str.strip, names.split(",")):
        exact = [each for each in VARIANTS if each.name == name]
        fitting = exact or [each for each in VARIANTS if name and name in each.name]
        if not fitting:
            raise UserError(f"--variants {name!r} is not one of {', '.join(each.name for each in VARIANTS)}")
        wanted += fitting
    needed = {each.against for each in wanted} | {each.name for each in wanted}
    return [each for each in VARIANTS if each.name in needed]


def prepare(config: "TrainFlags", folder: Path) -> list[str]:
    """The base, the images; the arguments that all variants share."""
    base = random_base(config.base, work_folder(config.work_dir, config.base))
    images = random_concepts(folder, config.side, config.concepts)
    arguments = training_arguments(base, images, config.concepts)
    steps = f"--max_train_steps={10**6}"
    return [*arguments, f"--train_batch_size={config.batch_size}", f"--resolution={config.side}", steps]


def measure_group(
    reference: Variant,
    group: Sequence[Variant],
    arguments: list[str],
    rounds: int,
    until: float,
    ceilings: dict[str, float],
    records: list[dict[str, Any]],
) -> None:
    """A reference and all that is compared with it; appends a record for each."""
    workers: list[Worker] = []
    try:
        if time.monotonic() >= until:
            return
        beside = Worker.start(reference, arguments)
        workers.append(beside)
        for variant in group:
            if time.monotonic() >= until:
                print(f"{variant.name}: not measured, the time was up")
                continue
            worker = Worker.start(variant, arguments)
            workers.append(worker)
            encoded = worker.ask("encode")
            before = len(beside.steps)
            for done in range(rounds):
                if done and time.monotonic() >= until:
                    break
                beside.step()
                worker.step()
            record = record_of(worker, beside, beside.steps[before:], encoded)
            records.append(ended(worker, record, ceilings))
            worker.process.wait()
            print(line(records[-1]), flush=True)
        record = record_of(beside, beside, beside.steps, {"encoded": 0, "seconds": 0.0})
        records.append(ended(beside, record, ceilings))
        print(line(records[-1]), flush=True)
    finally:
        for worker in workers:
            worker.stop()


def record_of(
    worker: Worker, beside: Worker, opposite: list[dict[str, Any]], encoded: dict[str, float]
) -> dict[str, Any]:
    """What was measured of a variant; opposite: the reference's steps of the same rounds."""
    own = [step["seconds"] for step in worker.steps]
    ratios = [there["seconds"] / here for here, there in zip(own, opposite, strict=True)]
    first, other = worker.first["terms"], beside.first["terms"]
    return {
        "variant": worker.variant.name,
        "seconds": own,
        "processor_seconds": [step["processor_seconds"] for step in worker.steps],
        "ratios": ratios,
        "first_step_after": worker.first["first_step_after"],
        "encoded": encoded["encoded"],
        "encode_seconds": encoded["seconds"],
        "encode_seconds_per_step": encoded["seconds"] / ENCODED_FOR,
        "loss": first["loss"],
        "loss_difference": abs(first["loss"] - other["loss"]),
    }


def ended(worker: Worker, record: dict[str, Any], ceilings: dict[str, float]) -> dict[str, Any]:
    """The record with a worker's last answers, and its operations' share of its precision's ceiling."""
    record = record | worker.ask("memory") | worker.ask("end")
    seconds = statistics.median(record["seconds"]) if record["seconds"] else None
    rate = ceilings[precision_of(record["variant"])]
    return record | {"of_ceiling": record["flop"] / seconds / rate if seconds else None}


def precision_of(name: str) -> str:
    """The precision in a variant's name: "fp32" or "bf16"."""
    return "bf16" if "bf16" in name else "fp32"


def line(record: dict[str, Any]) -> str:
    """A record as a line of the table."""

    def spread(values: list[float], digits: int) -> str:
        if not values:
            return "not measured"
        middle, low, high = statistics.median(values), min(values), max(values)
        return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"

    share = f"{record['of_ceiling']:.0%}" if record["of_ceiling"] else "–"
    text = (
        f"{record['variant']:30} {spread(record['seconds'], 3):23} {spread(record['ratios'], 2):18} "
        f"{record['peak_bytes'] / 2**30:5.2f} GiB  {record['first_step_after']:6.1f} s  "
        f"{record['checkpoint_bytes'] / 2**20:8.1f} MiB  {share:>5}  loss {record['loss']:.5f}, "
        f"difference {record['loss_difference']:.1e}"
    )
    if record["encoded"]:
        each = record["encode_seconds"] / record["encoded"]
        text += f"; encoding {each:.3f} s an image, once"
    return text


def as_record(config: "StepFlags", records: list[dict[str, Any]], batch_size: int | None) -> dict[str, Any]:
    """What one line of JSON holds, for machines. batch_size: None where the records say it."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    facts: dict[str, Any] = {"base": config.base, "resolution": config.side}
    facts |= {} if batch_size is None else {"batch_size": batch_size}
    facts |= {"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}
    return facts | {"records": records}

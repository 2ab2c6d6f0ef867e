"""Training one subject of a benchmark with one method, in a process of its own."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from utils.bases.registry import BASES, shown
from utils.errors import UserError
from utils.evaluation.data_sets import Subject
from utils.files import write_json
from utils.training.config import TrainConfig, build_parser
from utils.training.methods import METHODS
from utils.training.preflight import check_run
from utils.training.settings import training_flags

REPOSITORY = Path(__file__).resolve().parents[1]
# What an evaluation sets itself, and --train_flags therefore may not.
SET_HERE = frozenset(
    "method output_dir instance_data_dir instance_prompt concepts_list modifier_token cls_token "
    "pretrained_model_name_or_path resume_from_checkpoint checkpoints_total_limit dry_run".split()
)
# A launcher's word to its processes, which a training started by one of them must not take for its own.
LAUNCHER = re.compile(
    r"(GROUP_|ROLE_|LOCAL_|)(RANK|WORLD_SIZE|NAME)|GROUP_WORLD_SIZE|MASTER_.*|TORCHELASTIC_.*"
)


def read_setting(name: str) -> tuple[str, list[str]]:
    """(base model, training flags) of a base; λ among them, which `_flags_of` leaves out where it must."""
    return shown(BASES[name].path), training_flags(BASES[name], [])[1:]


def check_flags(subject: Subject, method: str, base: str, flags: Sequence[str]) -> None:
    """Raises UserError for training flags that are wrong, or wrong for this base model; nothing is loaded."""
    if mine := [flag for flag in flags if flag.partition("=")[0].lstrip("-") in SET_HERE]:
        raise UserError(f"--train_flags has {mine[0]}, which an evaluation sets itself; leave it out")
    alone = replace(subject, individuals=subject.individuals[:1])  # a concepts list would have to be written
    told = _concept_flags(alone, method, base, flags, Path("unwritten"))
    try:
        config = TrainConfig(**vars(build_parser().parse_args(told)))
    except UserError as error:
        raise UserError(f"--train_flags: {error}") from None
    check_run(config)


def is_trained(concept: Path) -> bool:
    """Whether a training has written its concept: the configuration comes last."""
    return (concept / "training_config.json").is_file()


def personalise(
    subject: Subject, method: str, base: str, flags: Sequence[str], concept: Path, device: torch.device
) -> None:
    """Trains into `concept`, going on from its newest checkpoint; keeps no checkpoint of a finished training.

    What the training prints goes to train.txt beside the folder.
    Raises UserError as the training does, RuntimeError if it fails otherwise.
    """
    command = [sys.executable, str(REPOSITORY / "train_classdiffusion.py")]
    command += _concept_flags(subject, method, base, flags, concept)
    command += ["--resume_from_checkpoint=latest", "--checkpoints_total_limit=1"]
    log = concept.parent / "train.txt"
    concept.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        done = subprocess.run(command, env=_environment(device), stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        last = [line for line in log.read_text().splitlines() if line.strip()][-1:]
        told = f"training {subject.name} with {method}: {''.join(last).removeprefix('error: ')}"
        raise UserError(told) if done.returncode == 2 else RuntimeError(f"{told} (all of it in {log})")
    for checkpoint in concept.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)  # the optimizer's state is three times the concept's size


def _concept_flags(
    subject: Subject, method: str, base: str, flags: Sequence[str], concept: Path
) -> list[str]:
    """A subject's command line; for several individuals a concepts list is written beside the concept."""
    told = [
        f"--method={method}",
        f"--pretrained_model_name_or_path={base}",
        f"--output_dir={concept}",
        *_flags_of(method, flags),
    ]
    told.append("--modifier_token=" + "+".join(each.token for each in subject.individuals))
    told.append(f"--cls_token={subject.cls}")
    if len(subject.individuals) == 1:
        (each,) = subject.individuals
        return [*told, f"--instance_data_dir={each.folder}", f"--instance_prompt={each.instance_prompt}"]
    entries = [
        {"instance_prompt": each.instance_prompt, "instance_data_dir": str(each.folder)}
        for each in subject.individuals
    ]
    write_json(concept.parent / "concepts.json", entries)
    return [*told, f"--concepts_list={concept.parent / 'concepts.json'}"]


def _flags_of(method: str, flags: Sequence[str]) -> list[str]:
    """Flags are for all methods, but λ for those that have the semantic preservation loss."""
    if METHODS[method].spl_weight or "--use_spl" in flags:
        return list(flags)
    kept, rest = [], iter(flags)
    for flag in rest:
        name, joined, _ = flag.partition("=")
        if name != "--spl_weight":
            kept.append(flag)
        elif not joined:
            next(rest, None)  # its value
    return kept


def _environment(device: torch.device) -> dict[str, str]:
    """This process's environment without what its launcher told it, and with its own GPU alone."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not LAUNCHER.fullmatch(name)
        and (not name.startswith("ACCELERATE_") or name == "ACCELERATE_USE_CPU")
    }
    if device.type == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        environment["CUDA_VISIBLE_DEVICES"] = (
            visible[device.index or 0] if visible != [""] else str(device.index or 0)
        )
    return environment

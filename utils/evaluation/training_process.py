"""Training one subject of a benchmark with one method, in a process of its own."""

import gc
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import torch

from utils.bases.registry import REPOSITORY
from utils.common.errors import UserError
from utils.common.files import remove, write_json
from utils.common.process import run_child
from utils.config.methods import CLASS_NAMED, METHODS
from utils.config.train_config import TrainConfig, parse_config, resolve
from utils.evaluation.data_sets import Subject
from utils.training.preflight import check_settings

# A launcher's word to its processes, which a training started by one of them must not take for its own.
LAUNCHER = re.compile(
    r"(GROUP_|ROLE_|LOCAL_|)(RANK|WORLD_SIZE|NAME)|GROUP_WORLD_SIZE|MASTER_.*|TORCHELASTIC_.*"
)


def check_flags(subject: Subject, method: str, base: str, flags: Sequence[str]) -> None:
    """Raises UserError for --train_flags that are wrong, or wrong for this base model; nothing is loaded."""
    set_here = {each.name for each in fields(TrainConfig) if each.metadata.get("set_by_evaluation")}
    set_here.add("config")  # a file may set them too
    if mine := [flag for flag in flags if flag.partition("=")[0].lstrip("-") in set_here]:
        raise UserError(f"--train_flags has {mine[0]}, which an evaluation sets itself; leave it out")
    check_settings(config_of(subject, method, base, flags_of(method, flags)))


def config_of(subject: Subject, method: str, base: str, flags: Sequence[str]) -> TrainConfig:
    """The configuration of a subject's training, of its first individual alone where it has several, whose
    list would have to be written. Raises UserError for flags that are wrong."""
    alone = replace(subject, individuals=subject.individuals[:1])
    with _named_in_errors():
        return parse_config(_concept_flags(alone, method, base, flags, Path("unwritten")))


def preset_flags(subject: Subject, method: str, base: str, flags: Sequence[str]) -> list[str]:
    """What the preset adds to the --train_flags of a method. Raises UserError for flags that are wrong."""
    given = [f"--method={method}", f"--pretrained_model_name_or_path={base}", *flags]
    tokens = "+".join(each.token for each in subject.individuals)
    with _named_in_errors():
        return resolve([*given, f"--modifier_token={tokens}"])[1].flags


@contextmanager
def _named_in_errors() -> Iterator[None]:
    """A mistake in the block is one of --train_flags."""
    try:
        yield
    except UserError as error:
        raise UserError(f"--train_flags: {error}") from None


def is_trained(concept: Path) -> bool:
    """Whether a training has written its concept: the configuration comes last."""
    return (concept / "training_config.json").is_file()


def train(
    subject: Subject,
    method: str,
    base: str,
    flags: Sequence[str],
    concept: Path,
    device: torch.device,
    keep_checkpoints: bool = False,
) -> None:
    """Trains into `concept`, going on from its newest checkpoint; of a finished training no checkpoint stays,
    or with keep_checkpoints every one.

    What the training prints goes to train.txt next to the folder. It ends when this process ends, however.
    Raises UserError and FloatingPointError as the training does, UserError if a signal ended it, RuntimeError
    if it fails otherwise.
    """
    command = [sys.executable, str(REPOSITORY / "train_classdiffusion.py")]
    command += _concept_flags(subject, method, base, flags, concept)
    command.append("--resume_from_checkpoint=latest")
    chooses = any(flag.partition("=")[0] == "--select_checkpoint" for flag in flags)  # among all
    if not chooses and not keep_checkpoints:
        command.append("--checkpoints_total_limit=1")
    log = concept.parent / "train.txt"
    concept.mkdir(parents=True, exist_ok=True)
    if device.type == "cuda":  # what this process has kept of earlier models, the child needs
        gc.collect()
        torch.cuda.empty_cache()
    code = run_child(command, log, _environment(device))
    if code:
        raise _failure(code, f"training {subject.name} with {method}", log)
    for checkpoint in () if keep_checkpoints else concept.glob("checkpoint-*"):
        remove(checkpoint)  # the optimizer's state is three times the concept's size


def _failure(code: int, what: str, log: Path) -> Exception:
    """What to raise for a command that ended with this code."""
    number = -code if code < 0 else code - 128  # of a signal; a training that saved first has exit 128 + it
    if 0 < number < signal.NSIG:
        ended = f"{what}: ended by {signal.Signals(number).name}"
        return UserError(f"{ended}; the same command goes on from its last checkpoint, or begins anew")
    last = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()][
        -1:
    ]
    reason = f"{what}: {''.join(last).removeprefix('error: ')}"
    kinds = {2: UserError, 3: FloatingPointError}
    return kinds[code](reason) if code in kinds else RuntimeError(f"{reason} (all of it in {log})")


def _concept_flags(
    subject: Subject, method: str, base: str, flags: Sequence[str], concept: Path
) -> list[str]:
    """A subject's command line; for several individuals a concepts list is written next to the concept.

    In a flag's value `{}`, or `{0}` and `{1}` for two, is the subject, as in a prompt: --validation_prompt.
    """
    given = [
        f"--method={method}",
        f"--pretrained_model_name_or_path={base}",
        f"--output_dir={concept}",
        *(_named(flag, subject, named_by(method, flags)) for flag in flags),
    ]
    given.append("--modifier_token=" + "+".join(each.token for each in subject.individuals))
    given.append(f"--cls_token={subject.cls}")
    if len(subject.individuals) == 1:
        (each,) = subject.individuals
        given.append(f"--instance_data_dir={each.folder}")
        own = METHODS[method].captions == "prompt"  # other methods draw their captions from templates
        return given + [f"--instance_prompt={each.instance_prompt}"] * own
    entries = [
        {"instance_prompt": each.instance_prompt, "instance_data_dir": str(each.folder)}
        for each in subject.individuals
    ]
    write_json(concept.parent / "concepts.json", entries)
    return [*given, f"--concepts_list={concept.parent / 'concepts.json'}"]


def named_by(method: str, flags: Sequence[str]) -> str:
    """How prompts name an individual: "{token} {cls}", or as the method's row says where its flags lack
    --name_class."""
    given = [flag for flag in flags if flag in ("--name_class", "--no_name_class")]
    return CLASS_NAMED if given[-1:] == ["--name_class"] else METHODS[method].subject


def _named(flag: str, subject: Subject, named: str) -> str:
    """named: how prompts name an individual (Method.subject)."""
    names = [named.format(token=each.token, cls=each.cls_token) for each in subject.individuals]
    for index, name in enumerate(names):
        flag = flag.replace(f"{{{index}}}", name)
    return flag.replace("{}", names[0]) if len(names) == 1 else flag


def flags_of(method: str, flags: Sequence[str]) -> list[str]:
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
    """This process's environment without its launcher's words, and with its own GPU alone."""
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

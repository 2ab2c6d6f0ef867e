"""Checkpoints of a training run, and exact resume from them."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.errors import UserError

STATE_FILE = "training_state.pt"


def save_state(
    folder: Path, step: int, trained: dict[str, Tensor], optimizer, lr_scheduler, scaler, processes: int
) -> None:
    """Write what a run needs to go on after `step` optimizer steps; atomic.

    trained: name -> parameter. scaler: torch GradScaler, or None outside fp16.
    """
    state = {
        "step": step,
        "processes": processes,
        "trained": {name: value.detach().cpu() for name, value in trained.items()},
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": lr_scheduler.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else None,
    }
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / (STATE_FILE + ".partial")
    torch.save(state, partial)
    os.replace(partial, folder / STATE_FILE)


def load_state(
    folder: Path, trained: dict[str, Tensor], optimizer, lr_scheduler, scaler, processes: int
) -> int:
    """Put the state back in place; returns the number of optimizer steps done.

    Raises UserError for another number of processes, which would see other pictures, and ValueError when the
    checkpoint trained other parameters than this run does.
    """
    state = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
    if state["processes"] != processes:
        raise UserError(
            f"cannot resume {folder} with {processes} processes: it ran with {state['processes']}"
        )
    if state["trained"].keys() != trained.keys():
        raise ValueError(f"{folder} trained {len(state['trained'])} tensors, this run {len(trained)}")
    with torch.no_grad():
        for name, value in trained.items():
            value.copy_(state["trained"][name])
    optimizer.load_state_dict(state["optimizer"])
    lr_scheduler.load_state_dict(state["lr_scheduler"])
    if scaler is not None and state["scaler"] is not None:
        scaler.load_state_dict(state["scaler"])
    return state["step"]


def checkpoints(output_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [path for path in output_dir.glob("checkpoint-*") if (path / STATE_FILE).is_file()]
    found = [path for path in found if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def remove_old_checkpoints(output_dir: Path, step: int, keep: int | None) -> None:
    """After the checkpoint of `step`: keep the `keep` newest, None keeps all.

    Checkpoints of later steps come from an earlier run that this one replaces; 'latest' must not find them.
    """
    found = checkpoints(output_dir)
    valid = [path for path in found if _step(path) <= step]
    for path in found[len(valid) :] + (valid[:-keep] if keep else []):
        shutil.rmtree(path)


def find_checkpoint(resume_from: str, output_dir: Path) -> Path | None:
    """'latest' -> the newest checkpoint of output_dir, or None while there is none; a path -> that one.

    Raises UserError for a path that holds no checkpoint.
    """
    if resume_from == "latest":
        return found[-1] if (found := checkpoints(output_dir)) else None
    if not (Path(resume_from) / STATE_FILE).is_file():
        raise UserError(
            f"--resume_from_checkpoint {resume_from} holds no {STATE_FILE}: give 'latest' or a checkpoint"
        )
    return Path(resume_from)


def check_same_run(
    checkpoint: Path,
    config: dict[str, Any],
    may_differ: frozenset[str],
    canonical: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> None:
    """Raise UserError when the checkpoint comes from settings that make another run, or is past its end."""
    before = canonical(json.loads((checkpoint / "training_config.json").read_text()))
    changed = [k for k in sorted(config) if k not in may_differ and before.get(k) != config[k]]
    if changed:
        told = ", ".join(f"{key} was {before.get(key)!r}, is {config[key]!r}" for key in changed)
        raise UserError(f"cannot resume {checkpoint}: {told}; give the same settings or start anew")
    # Mapped, not read: the optimizer's state is large.
    done = torch.load(checkpoint / STATE_FILE, mmap=True, map_location="cpu", weights_only=True)["step"]
    if done > config["max_train_steps"]:
        raise UserError(
            f"cannot resume {checkpoint}: it is beyond --max_train_steps {config['max_train_steps']}"
        )

"""What a run needs, besides the concept's own files, to go on exactly where it was saved.

One safetensors file: the optimizer's tensors as `optimizer/<parameter>/<key>`, trained tensors that the
concept files do not hold bit for bit as `trained/<parameter>`, averages of what trains, if the run keeps
them, as `average/<parameter>`, everything else as JSON in its metadata.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.common.errors import UserError
from utils.common.files import shown
from utils.common.tensor_files import read_metadata, read_tensors, write_tensors
from utils.training.optimizer_state import alike, groups_of, named, optimizer_state

STATE_FILE = "training_state.safetensors"
_KEYS = {
    "step": int,
    "processes": int,
    "digests": dict,
    "groups": list,
    "scalars": dict,
    "lr_scheduler": dict,
}


def save_state(
    folder: Path,
    step: int,
    trained: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    lr_scheduler: Any,
    scaler: Any,
    processes: int,
    in_concept: Collection[str],
    averages: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the state after `step` optimizer steps into `folder`.

    trained: name -> parameter, float32. in_concept: names of those that the concept files of the same folder
    hold bit for bit; they are not written a second time, only their digests. averages: of --ema_decay, by the
    same names. scaler: torch GradScaler, or
    None outside fp16. Raises FloatingPointError, and writes nothing, for a tensor that is not finite.
    """
    tensors = {f"trained/{name}": value for name, value in trained.items()}
    tensors |= {f"average/{name}": value for name, value in (averages or {}).items()}
    scalars: dict[str, dict[str, Any]] = {}
    for name, parameter in named(trained, optimizer).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{name}/{key}"] = value
            else:
                scalars.setdefault(name, {})[key] = value
    tensors = _apart(tensors)
    check_state_finite(tensors, step)
    state = {
        "step": step,
        "processes": processes,
        "digests": {name: digest(value) for name, value in trained.items()},
        "groups": groups_of(trained, optimizer),
        "scalars": scalars,
        "lr_scheduler": lr_scheduler.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else None,
    }
    kept = {key: value for key, value in tensors.items() if key.removeprefix("trained/") not in in_concept}
    write_tensors(folder / STATE_FILE, kept, {"state": json.dumps(state)})


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with a copy of each that shares memory with an earlier one, as 8-bit code books do."""
    seen: set[int] = set()
    copied = {}
    for name, value in tensors.items():
        place = value.data_ptr()
        copied[name] = value.clone() if place in seen else value
        seen.add(place)
    return copied


def load_state(
    folder: Path,
    tensors: dict[str, Tensor],
    trained: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    lr_scheduler: Any,
    scaler: Any,
    processes: int,
    before: int = 0,
) -> int:
    """Put the state back in place; returns the number of optimizer steps done.

    tensors: what the caller read from the folder's concept files, name -> tensor, as in save_state's
    in_concept. before: the steps of earlier stages, which had an optimizer of their own. Raises UserError,
    and changes nothing, for another number of processes, which would see other images, for other parameters,
    shapes or settings than this run's, and for values that were not saved here.
    """
    where = f"cannot resume {shown(folder)}"
    state, stored = _read_state(folder), read_tensors(folder / STATE_FILE)
    if state["processes"] != processes:
        raise UserError(f"{where} with {processes} processes: it ran with {state['processes']}")
    values = _values(where, state, stored, tensors, trained)
    moments = optimizer_state(where, state, stored, trained, optimizer)
    parts = [("lr_scheduler", lr_scheduler)] + ([("scaler", scaler)] if scaler is not None else [])
    for name, part in parts:
        if not alike(state[name], part.state_dict()):
            raise UserError(f"{where}: its {name} is of another kind; give the same settings")
    _check_steps(where, state["step"] - before, state, moments)
    if scaler is None and state["scaler"] is not None:
        raise UserError(f"{where}: it ran with fp16's loss scale; give the same --mixed_precision")

    with torch.no_grad():
        for name, value in trained.items():
            value.copy_(values[name])
    optimizer.load_state_dict(moments)
    for name, part in parts:
        part.load_state_dict(state[name])
    return state["step"]


def load_trained(folder: Path, tensors: dict[str, Tensor], trained: dict[str, Tensor]) -> int:
    """Put the trained parameters alone back in place, as `load_state` does; returns the steps done."""
    state, stored = _read_state(folder), read_tensors(folder / STATE_FILE)
    values = _values(f"cannot resume {shown(folder)}", state, stored, tensors, trained)
    with torch.no_grad():
        for name, value in trained.items():
            value.copy_(values[name])
    return state["step"]


def load_averages(folder: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The averages that `save_state` wrote, by the names of `like`; UserError where they do not fit it."""
    stored = read_tensors(folder / STATE_FILE)
    found = {key.removeprefix("average/"): v for key, v in stored.items() if key.startswith("average/")}
    if {k: v.shape for k, v in found.items()} != {k: v.shape for k, v in like.items()}:
        raise UserError(f"cannot resume {shown(folder)}: its averages are not of what trains here")
    return found


def saved_step(folder: Path) -> int:
    """The optimizer steps that a checkpoint has behind it; its tensors are not read."""
    return _read_state(folder)["step"]


def saved_processes(folder: Path) -> int:
    """The number of processes that a checkpoint's run had."""
    return _read_state(folder)["processes"]


def check_state_finite(tensors: dict[str, Tensor], step: int) -> None:
    """Raise FloatingPointError, naming the tensors that are not finite."""
    bad = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise FloatingPointError(
            f"step {step}: {', '.join(bad[:3])}{more} not finite; no checkpoint was written, "
            "those of earlier steps are good"
        )


def digest(tensor: Tensor) -> str:
    """SHA-256 of the tensor's dtype and bytes."""
    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    hashed = hashlib.sha256(str(tensor.dtype).encode())
    hashed.update(content.numpy().data)
    return hashed.hexdigest()


def _read_state(folder: Path) -> dict[str, Any]:
    state = read_metadata(folder / STATE_FILE, "state")
    bad = [key for key, kind in _KEYS.items() if type(state.get(key)) is not kind]
    bad += ["step"] if not bad and state["step"] < 1 else []
    if bad or not isinstance(state.get("scaler", ...), dict | None):
        raise UserError(
            f"{shown(folder / STATE_FILE)} is damaged ({', '.join(bad) or 'scaler'}); give another checkpoint"
        )
    return state


def _check_steps(where: str, steps: int, state: dict[str, Any], moments: dict[str, Any]) -> None:
    """Raise UserError unless the schedule and the optimizer have done as many steps as the state says.

    Under fp16's loss scale the optimizer passes over steps whose gradients overflow.
    """
    counts = [int(part["step"]) for part in moments["state"].values() if "step" in part]
    skips = state["scaler"] is not None
    right = [count == steps or (skips and count < steps) for count in counts]
    if state["lr_scheduler"].get("last_epoch") != steps or not all(right) or not (moments["state"] or skips):
        raise UserError(f"{where}: its optimizer has not done its {steps} steps; give another checkpoint")


def _values(
    where: str,
    state: dict[str, Any],
    stored: dict[str, Tensor],
    tensors: dict[str, Tensor],
    trained: dict[str, Tensor],
) -> dict[str, Tensor]:
    """The trained tensors, from the concept files and the state, once they are known to be those saved."""
    prefix = "trained/"
    values = tensors | {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
    _check_values(where, values, state["digests"], trained)
    return values


def _check_values(
    where: str, values: dict[str, Tensor], digests: dict[str, Any], trained: dict[str, Tensor]
) -> None:
    if trained.keys() != digests.keys():
        differ = ", ".join(sorted(map(shown, trained.keys() ^ digests.keys()))[:3])
        raise UserError(
            f"{where}: it trained {len(digests)} tensors, this run {len(trained)}; they differ in {differ}"
        )
    for name, parameter in trained.items():
        if name not in values:
            raise UserError(f"{where}: {name} is not in its files; give another checkpoint")
        if values[name].shape != parameter.shape:
            shapes = f"{tuple(values[name].shape)}, not {tuple(parameter.shape)}"
            raise UserError(f"{where}: {name} has shape {shapes}; give the same base model and settings")
        if digest(values[name]) != digests[name]:
            raise UserError(f"{where}: {name} is not what was trained; give another checkpoint")

"""What of an optimizer goes into a checkpoint, and whether a checkpoint's fits the optimizer of a run."""

import json
from typing import Any

import torch
from torch import Tensor

from utils.common.errors import UserError
from utils.common.files import shown


def named(trained: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's parameters in its own order, by their names in `trained`."""
    names = {id(parameter): name for name, parameter in trained.items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {names[id(parameter)]: parameter for parameter in parameters}


def groups_of(trained: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The optimizer's groups with names for parameters, ready for JSON, which has no tuples.

    Whether it is fused is left out: that depends on the device, and a run may go on on another.
    """
    names = {id(parameter): name for name, parameter in trained.items()}
    groups = [
        group
        | ({"fused": None} if "fused" in group else {})
        | {"params": [names[id(parameter)] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    return json.loads(json.dumps(groups))


def optimizer_state(
    where: str,
    state: dict[str, Any],
    stored: dict[str, Tensor],
    trained: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> dict[str, Any]:
    """What optimizer.load_state_dict takes, once it is known to fit."""
    groups, ours = state["groups"], groups_of(trained, optimizer)
    strict = type(getattr(optimizer, "optimizer", optimizer)) is torch.optim.AdamW
    known = groups
    if not strict and len(groups) == len(ours):  # others add to their groups, and have states of other shapes
        known = [{k: v for k, v in g.items() if k in o} for g, o in zip(groups, ours, strict=True)]
    if not alike(known, ours) or [g["params"] for g in groups] != [g["params"] for g in ours]:
        raise UserError(f"{where}: its optimizer has other groups; give the same settings")
    parameters = named(trained, optimizer)
    moments: dict[str, dict[str, Any]] = {name: dict(state["scalars"].get(name, {})) for name in parameters}
    for key, value in stored.items():
        kind, _, rest = key.partition("/")
        name, _, part = rest.rpartition("/")
        if kind in ("trained", "average"):
            continue
        shapes = (torch.Size(), parameters[name].shape) if name in parameters else ()
        if not shapes or (strict and value.shape not in shapes):
            raise UserError(f"{where}: its {shown(key)} of shape {tuple(value.shape)} is unknown to this run")
        moments[name][part] = value
    order = {name: number for number, name in enumerate(parameters)}
    packed = [
        {
            key: tuple(value) if key != "params" and isinstance(value, list) else value
            for key, value in g.items()
        }
        | ({"fused": own["fused"]} if "fused" in own else {})
        | {"params": [order[name] for name in g["params"]]}
        for g, own in zip(groups, optimizer.param_groups, strict=True)
    ]
    return {"state": {order[name]: part for name, part in moments.items() if part}, "param_groups": packed}


def alike(value: Any, pattern: Any) -> bool:
    """Whether JSON `value` has the keys, lengths and types of `pattern`."""
    if isinstance(pattern, dict):
        return (
            isinstance(value, dict)
            and value.keys() == pattern.keys()
            and all(alike(value[key], pattern[key]) for key in pattern)
        )
    if isinstance(pattern, list | tuple):
        same = isinstance(value, list) and len(value) == len(pattern)
        return same and all(alike(a, b) for a, b in zip(value, pattern, strict=True))
    if isinstance(pattern, bool) or isinstance(value, bool):
        return type(value) is type(pattern)
    if isinstance(pattern, int | float):
        return isinstance(value, int | float)
    return type(value) is type(pattern)

"""The optimizers, one row each; those of other packages need them installed and are built as theirs say."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from utils.common.errors import UserError


@dataclass(frozen=True)
class OptimizerRow:
    """build(parameter groups with their rates, config) -> a torch optimizer. package: what to install
    and import, or None. moments: bytes that it keeps for each parameter.
    """

    name: str
    build: Callable[[list[dict[str, Any]], Any], Any]
    package: str | None = None
    moments: int = 8


def _settings(config: Any) -> dict[str, Any]:
    betas = (config.adam_beta1, config.adam_beta2)
    return {"betas": betas, "eps": config.adam_epsilon, "weight_decay": config.adam_weight_decay}


def _adamw(groups: list[dict[str, Any]], config: Any) -> Any:
    import torch

    return torch.optim.AdamW(groups, **_settings(config))


def _adamw8bit(groups: list[dict[str, Any]], config: Any) -> Any:
    """Its two moments in 8 bits: 2 bytes a parameter, not 8. Tensors below 4096 numbers keep float32.

    SD 1.5's whole UNet, 860 million numbers, then needs 3.4 GB of weights, 3.4 of gradients and 1.8 of
    moments: 8.6 GB beside the activations, where AdamW's moments alone are 6.9.
    """
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(groups, **_settings(config))


OPTIMIZERS: dict[str, OptimizerRow] = {
    row.name: row
    for row in (
        OptimizerRow("adamw", _adamw),
        OptimizerRow("adamw8bit", _adamw8bit, "bitsandbytes", moments=2),
    )
}


def check_optimizer(config: Any) -> None:
    """Raise UserError for an optimizer that is not installed."""
    row = OPTIMIZERS[config.optimizer]
    if row.package is not None and find_spec(row.package) is None:
        raise UserError(
            f"--optimizer {row.name} needs {row.package}: pip install {row.package}, or use adamw"
        )

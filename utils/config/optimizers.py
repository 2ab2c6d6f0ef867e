"""The optimizers, one row each; those of other packages need them installed and are built as theirs say."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from utils.common.errors import UserError

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from utils.config.optimisation_flags import OptimisationFlags

Groups = list[dict[str, Any]]  # torch's parameter groups: "params" and "lr"


@dataclass(frozen=True, kw_only=True)
class OptimizerRow:
    """build(parameter groups with their rates, config) -> a torch optimizer. package: what to install
    and import, or None. moments: bytes that it keeps for each parameter.
    """

    name: str
    build: Callable[[Groups, "OptimisationFlags"], "Optimizer"]
    package: str | None = None
    moments: int = 8


def _settings(config: "OptimisationFlags") -> dict[str, Any]:
    betas = (config.adam_beta1, config.adam_beta2)
    return {"betas": betas, "eps": config.adam_epsilon, "weight_decay": config.adam_weight_decay}


def _adamw(groups: Groups, config: "OptimisationFlags") -> "Optimizer":
    """On CUDA in one kernel; on a CPU that would change the last bits of what is recorded."""
    import torch

    on_cuda = all(parameter.is_cuda for group in groups for parameter in group["params"])
    return torch.optim.AdamW(groups, **_settings(config), fused=True if on_cuda else None)


def _adamw8bit(groups: Groups, config: "OptimisationFlags") -> "Optimizer":
    """Its two moments in 8 bits: 2 bytes a parameter, not 8. Tensors below 4096 numbers keep float32.

    SD 1.5's whole UNet, 860 million numbers, then needs 3.4 GB of weights, 3.4 of gradients and 1.8 of
    moments: 8.6 GB besides the activations, where AdamW's moments alone are 6.9.
    """
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(groups, **_settings(config))


OPTIMIZERS: dict[str, OptimizerRow] = {
    row.name: row
    for row in (
        OptimizerRow(name="adamw", build=_adamw),
        OptimizerRow(name="adamw8bit", build=_adamw8bit, package="bitsandbytes", moments=2),
    )
}


def check_optimizer(config: "OptimisationFlags") -> None:
    """Raise UserError for an optimizer that is not installed."""
    row = OPTIMIZERS[config.optimizer]
    if row.package is not None and find_spec(row.package) is None:
        raise UserError(
            f"--optimizer {row.name} needs {row.package}: pip install {row.package}, or use adamw"
        )

"""The optimizers, one row each; those of other packages need them installed and are built as theirs say."""

from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from typing import Any

from utils.errors import UserError


@dataclass(frozen=True)
class OptimizerRow:
    """build(parameter groups with their rates, config) -> a torch optimizer. package: what to install, or
    None. own_rate: it finds the rate itself, and `--learning_rate`, one for all, is a factor of about 1.
    """

    name: str
    build: Callable[[list[dict[str, Any]], Any], Any]
    package: str | None = None
    module: str | None = None
    own_rate: bool = False


def _settings(config: Any) -> dict[str, Any]:
    """AdamW's, which Prodigy takes too."""
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


def _prodigy(groups: list[dict[str, Any]], config: Any) -> Any:
    """Mishchenko & Defazio 2023, arXiv:2306.06101, with bias correction and safeguarded warm-up."""
    from prodigyopt import Prodigy

    with redirect_stdout(StringIO()):  # a remark on weight decay
        return Prodigy(groups, **_settings(config), use_bias_correction=True, safeguard_warmup=True)


OPTIMIZERS: dict[str, OptimizerRow] = {
    row.name: row
    for row in (
        OptimizerRow("adamw", _adamw),
        OptimizerRow("adamw8bit", _adamw8bit, "bitsandbytes", "bitsandbytes"),
        OptimizerRow("prodigy", _prodigy, "prodigyopt", "prodigyopt", own_rate=True),
    )
}


def check_optimizer(config: Any) -> None:
    """Raise UserError for an optimizer that is not installed, and rates that it cannot take."""
    row = OPTIMIZERS[config.optimizer]
    if row.module is not None and find_spec(row.module) is None:
        raise UserError(
            f"--optimizer {row.name} needs {row.package}: pip install {row.package}, or use adamw"
        )
    if not row.own_rate:
        return
    given = f"--optimizer {row.name} finds its rate itself"
    if config.scale_lr or not 0.1 <= config.learning_rate <= 10:
        raise UserError(f"{given}: give --learning_rate 1, a factor of its rate, and no --scale_lr")
    rates = (config.token_learning_rate, config.text_encoder_learning_rate)
    if any(rate not in (None, config.learning_rate) for rate in rates):
        raise UserError(f"{given}, one for all: leave out the tokens' and the text encoder's rate")

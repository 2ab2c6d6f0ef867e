"""The flags of what a training measures of itself, and of the checkpoint that becomes its result."""

from dataclasses import dataclass

from utils.common.errors import UserError
from utils.common.flags import option

# --select_checkpoint: its key in the log, whether the lowest is the best. Drift and distance are low early in
# a training, the error late; validation weighs prompt against likeness.
CRITERIA = {
    "drift": ("drift_prediction", True),
    "spl": ("distance", True),
    "error": ("error", True),
    "validation": ("validation", False),
}


@dataclass(frozen=True)
class MeasureFlags:
    """What is measured with fixed captions, images and noise."""

    heading = "measures"

    drift_steps: int = option(
        0, "optimizer steps between measurements of drift from the base; 0: never", minimum=0, may_differ=True
    )
    select_checkpoint: str | None = option(
        None,
        "keep as the result the checkpoint best by this (default: the last)",
        choices=CRITERIA,
        may_differ=True,
    )

    def check_measures_without_class(self) -> None:
        """Raise UserError for comparisons with the class; called when --cls_token is not given."""
        if self.drift_steps or self.select_checkpoint in ("drift", "spl"):
            flag = "drift_steps" if self.drift_steps else f"select_checkpoint {self.select_checkpoint}"
            raise UserError(f"--{flag} compares with the class: give --cls_token, e.g. --cls_token dog")

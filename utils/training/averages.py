"""The exponential moving average (EMA) of what trains, which is what a run with `--ema_decay` saves."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from utils.losses.preserve import untouched

Named = Mapping[str, Mapping[str, Tensor]]  # learner -> name -> parameter


class Averages:
    """diffusers' EMAModel by names. Its decay after t updates is min(decay, t / (9 + t)), from 0 on."""

    def __init__(self, learned: Named, decay: float):
        from diffusers.training_utils import EMAModel

        self.learned = learned
        self.model = EMAModel(list(self._parameters()), decay=decay)
        values = iter(self.model.shadow_params)
        self.values = {learner: {name: next(values) for name in each} for learner, each in learned.items()}

    def _parameters(self) -> Iterator[Tensor]:
        return (value for each in self.learned.values() for value in each.values())

    def update(self) -> None:
        """After an optimizer step."""
        self.model.step(self._parameters())

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it every trained parameter has its average."""
        with untouched(self.learned, self.values):
            yield

    @property
    def tensors(self) -> dict[str, Tensor]:
        """<learner>/<name> -> average, as checkpoints keep it."""
        return {f"{k}/{name}": value for k, each in self.values.items() for name, value in each.items()}

    def load(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Goes on from a checkpoint's averages, which `steps` updates made."""
        for name, value in self.tensors.items():
            value.copy_(tensors[name])
        self.model.optimization_step = steps

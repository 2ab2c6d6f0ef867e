"""Shared state of the training loop, and of its current stage."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch import Tensor, nn

from utils.bases.base import BaseModel
from utils.config.methods import Stage
from utils.config.optimizers import OPTIMIZERS
from utils.config.train_config import TrainConfig
from utils.data.dataset import Batch, ClassDataset, InstanceDataset, collate, items_of_step
from utils.data.latents import LatentEncoder
from utils.data.noise import Draws, draw_noise
from utils.data.prefetch import Prefetcher
from utils.learners.registry import LEARNERS
from utils.losses.registry import Loss, losses_of
from utils.losses.spl import Phrases
from utils.measures.measures import Measures
from utils.training.averages import Averages
from utils.training.model import ConceptModel


@dataclass(frozen=True, kw_only=True)
class Run:
    """Shared state of the training loop, from `set_up`.

    digest: of the base's weights. sources: what is recorded of the images learned from, see `sources_of`.
    learned: learner -> its parameters, float32. start: a copy of them from before the first step, empty
    where no loss needs it. prepared: loss -> what it set up, see `Loss.prepare`. measures: of the first
    process, where it measures anything. averages: of what trains, with --ema_decay.
    """

    config: TrainConfig
    accelerator: Accelerator
    base: BaseModel
    digest: str | None
    sources: dict[str, Any] = field(default_factory=dict)
    learned: dict[str, dict[str, nn.Parameter]]
    start: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    instances: InstanceDataset
    classes: ClassDataset | None
    encode_images: LatentEncoder
    phrases: Phrases
    prepared: dict[str, Any] = field(default_factory=dict)
    measures: Measures | None = None
    averages: Averages | None = None

    def averaged(self) -> AbstractContextManager[None]:
        """Within it what trains has the values that are saved: its averages, if the run keeps them."""
        return self.averages.in_place() if self.averages else nullcontext()

    @property
    def trained(self) -> dict[str, Tensor]:
        """Every trained parameter of every stage, by learner and name."""
        return {
            f"{learner}/{name}": value
            for learner, each in self.learned.items()
            for name, value in each.items()
        }


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """State of the current stage, from `begin`. Only its learners' parameters are trained.

    batches: number of a micro-step, from 0 -> its batch and its draws, see `draw_batch`.
    """

    stage: Stage
    losses: list[Loss]
    parameters: list[nn.Parameter]
    model: Any
    optimizer: Any
    lr_scheduler: Any
    batches: Callable[[int], tuple[Batch, Draws]]

    def rates(self) -> dict[str, float]:
        """The learning rate of each learner at the next step."""
        rates = zip(self.stage.trains, self.lr_scheduler.get_last_lr(), strict=True)
        return {f"lr_{learner}": rate for learner, rate in rates}


def begin(run: Run, stage: Stage, first: int, last: int) -> StageRun:
    """A stage's optimizer, schedule and model; only the parameters of its learners take gradients."""
    config, accelerator = run.config, run.accelerator
    for learner, parameters in run.learned.items():
        for parameter in parameters.values():
            parameter.requires_grad_(learner in stage.trains)
    groups = [
        {
            "params": list(run.learned[learner].values()),
            "lr": config.learning_rate_of(LEARNERS[learner].rate, stage.prior, accelerator.num_processes),
        }
        for learner in stage.trains
    ]
    optimizer = OPTIMIZERS[config.optimizer].build(groups, config)
    lr_scheduler = get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=last - first + 1,
    )
    accelerator.free_memory()
    model, optimizer = accelerator.prepare(ConceptModel(run.base), optimizer)
    return StageRun(
        stage=stage,
        losses=losses_of(config, stage),
        parameters=[parameter for group in groups for parameter in group["params"]],
        model=model,
        optimizer=optimizer,
        lr_scheduler=lr_scheduler,
        batches=Prefetcher(partial(draw_batch, run, stage)),
    )


def draw_texts(run: Run, at: StageRun, step: int) -> dict[str, Any]:
    """Loss -> what it wants encoded with the captions (`ids`); one draw for all micro-steps of a step."""
    return {loss.name: run.prepared[loss.name].draw(step) for loss in at.losses if loss.name in run.prepared}


def draw_batch(run: Run, stage: Stage, position: int) -> tuple[Batch, Draws]:
    """The batch of micro-step `position` in this process, on the CPU; a function of seed and item numbers."""
    config, base = run.config, run.base
    share = {"rank": run.accelerator.process_index, "processes": run.accelerator.num_processes}
    numbers = items_of_step(position, config.train_batch_size, **share)
    items, streams = run.instances.items(position, config.train_batch_size, **share), ["instance"]
    if stage.prior:
        size = items[0].pixels.shape[:0:-1]  # (W, H): class images take the bucket of the batch
        items += [run.classes.class_item(number, size) for number in numbers]
        streams.append("class")
    batch = collate(items)
    shape = (base.latent_channels, *batch.mask.shape[2:])
    keys = [(stream, number) for stream in streams for number in numbers]
    draws = draw_noise(config.seed, keys, shape, base.noise_scheduler.config.num_train_timesteps)
    return batch, draws

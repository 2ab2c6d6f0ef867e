"""What a training holds in its hands: the run, and the stage it is in."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch import Tensor, nn

from utils.bases.sd import StableDiffusion
from utils.config.methods import Stage
from utils.config.optimizers import OPTIMIZERS
from utils.config.train_config import TrainConfig
from utils.data.dataset import Batch, ClassDataset, InstanceDataset, collate, items_of_step
from utils.data.latents import LatentEncoder
from utils.data.noise import Draws, draw_noise
from utils.data.prefetch import Ahead
from utils.learners.registry import LEARNERS
from utils.losses.registry import Loss, losses_of
from utils.losses.spl import Phrases
from utils.measures.measures import Measures
from utils.training.averages import Averages
from utils.training.model import ConceptModel


@dataclass(frozen=True)
class Run:
    """What a training works with. learned: learner -> its parameters, float32. digest: of the base.
    start: what trains as it was before the first step, like `learned`; empty where no loss needs it."""

    config: TrainConfig
    accelerator: Accelerator
    base: StableDiffusion
    learned: dict[str, dict[str, nn.Parameter]]
    instances: InstanceDataset
    classes: ClassDataset | None
    phrases: Phrases
    encode_images: LatentEncoder
    digest: str | None
    start: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    prepared: dict[str, Any] = field(default_factory=dict)  # loss -> what it set up, see `Loss.prepare`
    measures: Measures | None = None  # of the first process, where it measures anything
    averages: Averages | None = None  # of what trains, with --ema_decay
    sources: dict[str, Any] = field(default_factory=dict)  # what is recorded of what is learned, `sources_of`

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


@dataclass(frozen=True)
class StageRun:
    """A stage at work: the parameters of its learners alone are trained, by an optimizer of their own.

    batches: position of a micro-step -> its batch and its draws, see `draw_batch`.
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
    parameters = [parameter for group in groups for parameter in group["params"]]
    batches = Ahead(partial(draw_batch, run, stage))
    return StageRun(stage, losses_of(config, stage), parameters, model, optimizer, lr_scheduler, batches)


def draw_texts(run: Run, at: StageRun, step: int) -> dict[str, Any]:
    """Loss -> what it wants encoded beside the captions (`ids`); one draw for all micro-steps of a step."""
    return {loss.name: run.prepared[loss.name].draw(step) for loss in at.losses if loss.name in run.prepared}


def draw_batch(run: Run, stage: Stage, position: int) -> tuple[Batch, Draws]:
    """Micro-step `position` of this process, on the CPU. Draws depend on the seed and the items' numbers."""
    config, base = run.config, run.base
    ranks = (run.accelerator.process_index, run.accelerator.num_processes)
    numbers = items_of_step(position, config.train_batch_size, *ranks)
    items, streams = run.instances.items(position, config.train_batch_size, *ranks), ["instance"]
    if stage.prior:
        size = items[0].pixels.shape[:0:-1]  # (W, H): class images take the bucket of the batch
        items += [run.classes.class_item(number, size) for number in numbers]
        streams.append("class")
    batch = collate(items)
    shape = (base.latent_channels, *batch.mask.shape[2:])
    keys = [(stream, number) for stream in streams for number in numbers]
    draws = draw_noise(config.seed, keys, shape, base.noise_scheduler.config.num_train_timesteps)
    return batch, draws

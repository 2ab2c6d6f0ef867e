"""What a training is going to do: its learners attached, and the plan that is printed."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from utils.bases.base import BaseModel
from utils.common.errors import UserError
from utils.config.optimizers import OPTIMIZERS
from utils.config.presets import Preset
from utils.config.train_config import TrainConfig
from utils.data.open import describe_data, open_instances
from utils.learners.learner import Parameters
from utils.learners.registry import LEARNERS
from utils.losses.registry import losses_of
from utils.training.preflight import outline_of


def attach_all(base: BaseModel, config: TrainConfig) -> dict[str, Parameters]:
    """Install the tokens and attach every learner of every stage: {learner: its parameters}."""
    base.add_tokens(*config.vectors(), config.start)
    names = dict.fromkeys(name for stage in config.stages for name in stage.trains)
    attached = {name: LEARNERS[name].attach(base) for name in names}
    parameters = [id(value) for each in attached.values() for value in each.values()]
    if len(set(parameters)) < len(parameters):
        raise UserError(f"{' and '.join(attached)} would train the same weights: name one of them")
    return attached


def describe_stages(config: TrainConfig, sizes: dict[str, int], processes: int = 1) -> Iterator[str]:
    """One line a stage: its steps, what trains at which rate, and the loss."""
    for stage, first, last in config.plan():
        learners = [LEARNERS[name] for name in stage.trains]
        rates = [config.learning_rate_of(each.rate, stage.prior, processes) for each in learners]
        trained = ", ".join(
            f"{each.title} {sizes[each.name]:,} at {rate:g}"
            for each, rate in zip(learners, rates, strict=True)
        )
        losses = losses_of(config, stage)
        terms = [] if any(loss.replaces for loss in losses) else ["L_denoise"]
        terms += [f"{loss.weight(config):g} · L_{loss.name.removeprefix('loss_')}" for loss in losses]
        yield f"steps {first} to {last}: {trained}; loss {' + '.join(terms)}"


def memory_of(config: TrainConfig, base: BaseModel, attached: dict[str, Parameters]) -> tuple[int, int, int]:
    """Bytes of weights, gradients and the optimizer's moments, which stay in memory from step to step."""
    dtype = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[config.mixed_precision]
    half = base.frozen_in_half(dtype)
    trained = {id(value) for each in attached.values() for value in each.values()}
    weights = 4 * sum(value.numel() for each in attached.values() for value in each.values())
    for module in base.modules.values():
        size = torch.finfo(dtype).bits // 8 if any(module is each for each in half) else 4
        weights += size * sum(value.numel() for value in module.parameters() if id(value) not in trained)
    weights += sum(LEARNERS[name].keeps(base) for name in attached if LEARNERS[name].keeps)
    sizes = {name: sum(value.numel() for value in each.values()) for name, each in attached.items()}
    numbers = max(sum(sizes[name] for name in stage.trains) for stage in config.stages)
    return weights, 4 * numbers, OPTIMIZERS[config.optimizer].moments * numbers


def describe_memory(config: TrainConfig, base: BaseModel, attached: dict[str, Parameters]) -> str:
    """What stays in memory from step to step, calculated from the shapes; activations come on top."""
    gigabytes = [size / 1e9 for size in memory_of(config, base, attached)]
    return (
        f"memory: weights {gigabytes[0]:.2f} GB, gradients {gigabytes[1]:.2f}, optimizer {gigabytes[2]:.2f}: "
        f"{sum(gigabytes):.2f} GB, and activations"
    )


def describe_run(config: TrainConfig, preset: Preset, checkpoint: Path | None) -> str:
    """The resolved configuration and what of it the preset gave, the number of trained parameters and the
    plan, for --dry_run."""
    base = outline_of(config)
    attached = attach_all(base, config)
    sizes = {name: sum(value.numel() for value in each.values()) for name, each in attached.items()}
    side = config.resolution or base.resolution
    images = config.train_batch_size * config.gradient_accumulation_steps
    return "\n".join(
        [
            json.dumps(asdict(config), indent=2),
            *preset.describe(),
            f"method: {config.recipe.name} ({config.recipe.source})",
            *describe_stages(config, sizes),
            describe_memory(config, base, attached),
            f"plan: {config.max_train_steps} steps of {images} images, {side} x {side}, per process, "
            + (f"resuming {checkpoint}" if checkpoint else "from the beginning"),
            *[
                f"concept: {c.modifier_token} from {c.instance_data_dir}: "
                + (c.instance_prompt if config.recipe.captions == "prompt" else "captions from templates")
                for c in config.concepts()
            ],
            *describe_data(config, open_instances(config, base), None),
        ]
    )

"""What is checked of a training run before any model loads, and the plan that is printed."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from utils.bases.base import BaseModel
from utils.bases.devices import check_processes
from utils.bases.families import family_of
from utils.bases.registry import base_row
from utils.common.errors import UserError, short
from utils.common.files import check_writable_folder, shown
from utils.common.images import digest_images
from utils.common.words import counted
from utils.concepts.formats import MANIFEST as CONCEPT
from utils.concepts.names import check_apart
from utils.config.optimizers import OPTIMIZERS
from utils.config.presets import Preset
from utils.config.train_config import IMAGES, PROMPTS, TrainConfig
from utils.data.augmentation import FAR, LONGEST_PREFIX, NEAR
from utils.data.captions import captions_of
from utils.data.class_images import check_class_images
from utils.data.open import check_data, check_instance_images, data_files, describe_data, open_instances
from utils.learners.learner import Parameters
from utils.learners.registry import LEARNERS
from utils.losses.contextualizer import check_contextualizer
from utils.losses.registry import asked_for, losses_of
from utils.measures.measures import check_judges
from utils.measures.selection import check_selection
from utils.sampling.settings import check_steps
from utils.training.checkpoints import check_same_run, find_checkpoint
from utils.training.state import saved_processes, saved_step


def check_run(config: TrainConfig) -> Path | None:
    """Raise UserError for what only the files can say; returns the checkpoint to resume from, if any."""
    check_processes()
    for concept in config.concepts():
        check_instance_images(concept)
        if concept.class_data_dir:
            check_class_images(concept.class_data_dir, concept.class_prompt, config.num_class_images)
    check_data(config, check_settings(config))
    check_writable_folder(config.output_dir, "output_dir")
    checkpoint = checkpoint_of(config)
    check_selection(config, saved_step(checkpoint) if checkpoint else 0)
    return checkpoint


def check_settings(config: TrainConfig) -> BaseModel:
    """Raise UserError for settings that do not suit the base model or the machine; no image is read.

    Returns the base model's outline, its tokenizers with the tokens.
    """
    check_learners(config)
    if config.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise UserError("--mixed_precision fp16 needs a CUDA device: use bf16, or no")
    if config.allow_tf32 and not torch.cuda.is_available():
        raise UserError("--allow_tf32 has no effect without a CUDA device: leave it out")
    base = outline_of(config)
    check_encoders(config, base)
    if config.weight("mlm_weight") is not None:
        check_contextualizer(base_row(config.pretrained_model_name_or_path))
    if config.resolution and config.resolution % base.latent_factor:
        raise UserError(
            f"--resolution {config.resolution}: this base model needs a multiple of {base.latent_factor}"
        )
    check_captions(config, base)
    if config.validation_prompt:
        row = base_row(config.pretrained_model_name_or_path)
        steps = config.validation_inference_steps or row.sampling.num_inference_steps
        check_steps(steps, row.path, "validation_inference_steps")
    check_judges(config)
    return base


def outline_of(config: TrainConfig) -> BaseModel:
    """The base model from its configuration files alone."""
    path, revision = base_row(config.pretrained_model_name_or_path).path, config.revision
    return family_of(path, revision).outline(path, revision)


def check_learners(config: TrainConfig) -> None:
    """Raise UserError for unknown learners, rates that no learner has, and text losses that reach none."""
    names = [name for stage in config.stages for name in stage.trains]
    if unknown := [name for name in names if name not in LEARNERS]:
        raise UserError(
            f"--trains {short(config.trains)}: {short(unknown[0])} is unknown; "
            f"choose from {', '.join(LEARNERS)}"
        )
    trained = [LEARNERS[name] for name in names]
    for rate in ("token_learning_rate", "text_encoder_learning_rate"):
        if getattr(config, rate) is not None and rate not in {learner.rate for learner in trained}:
            raise UserError(f"--{rate} has no effect on --method {config.method}: leave it out")
    if config.num_vectors > 1 and (refusing := [each for each in trained if each.one_vector]):
        raise UserError(
            f"--num_vectors {config.num_vectors}: --method {config.method} trains {refusing[0].title}, which "
            "know tokens of one vector; leave it out"
        )
    if config.num_vectors > 1 and "token_rows" not in names:
        raise UserError(
            f"--num_vectors has no effect on --method {config.method}, which trains no token: leave it out"
        )
    check_reach(config, names)


def check_reach(config: TrainConfig, names: list[str]) -> None:
    """Raise UserError for a loss that was asked for and cannot reach what the learners of `names` train."""
    learners, asked = [LEARNERS[name] for name in names], asked_for(config)
    trains = f"what --method {config.method} trains ({'+'.join(names)})"
    for loss in asked:
        if loss.output and all(learner.tokens_only for learner in learners):
            raise UserError(
                f"{loss.title} cannot reach {trains}: class captions do not hold it; leave it out"
            )
    given = " and ".join(loss.title for loss in asked if loss.text)
    if given and not any(learner.text for learner in learners):
        raise UserError(
            f"{given} cannot reach {trains}: add token_rows or text_encoder by --trains, or leave it out"
        )
    if given and any(learner.timed for learner in learners):
        raise UserError(
            f"{given} cannot read the text states of --method {config.method}, whose token "
            "means something else at every timestep: leave it out"
        )
    for loss in asked:
        if not loss.layered and any(learner.layered for learner in learners):
            raise UserError(
                f"{loss.title} cannot read the text states of --method {config.method}, a copy for each "
                "layer: leave it out"
            )


def check_encoders(config: TrainConfig, base: BaseModel) -> None:
    """Raise UserError for learners and losses that know bases with one text encoder, on a base with more."""
    if len(base.encoders) == 1:
        return
    where = f"one text encoder, and a {base.title} has {len(base.encoders)}"
    for learner in dict.fromkeys(name for stage in config.stages for name in stage.trains):
        if LEARNERS[learner].one_encoder:
            raise UserError(f"--method {config.method} trains {learner}, which needs {where}: choose another")
    for loss in asked_for(config):
        if loss.one_encoder:
            raise UserError(f"{loss.title} needs {where}: leave it out")


def check_captions(config: TrainConfig, base: BaseModel) -> None:
    """Raise UserError for tokens that cannot be added, and captions that would be cut before their token."""
    concepts = config.concepts()
    tokens = [concept.modifier_token for concept in concepts]
    names, words = config.vectors()
    base.check_tokens(names, words, config.start)
    for encoder in base.encoders:
        encoder.tokenizer.add_tokens(names)
    scaled = config.recipe.view == "scaled" and not config.noaug
    check_apart(tokens, (*FAR, *NEAR) if scaled else ())
    for concept in concepts:
        for caption in captions_of(config.recipe, concept):
            check_apart(tokens, [caption])
            base.within_limit(f"{LONGEST_PREFIX if scaled else ''}{caption}", [concept.modifier_token])


def checkpoint_of(config: TrainConfig) -> Path | None:
    """The checkpoint of --resume_from_checkpoint, None while there is none. Errors as in checkpoints.py.

    Also raises UserError when a run would begin in a folder that holds one already.
    """
    folder = Path(config.output_dir)
    if config.resume_from_checkpoint is None:
        earlier = [path for path in (*folder.glob("checkpoint-*"), folder / CONCEPT) if path.exists()]
        if earlier and not config.overwrite:
            raise UserError(
                f"--output_dir {folder} holds a run ({earlier[0].name}): give another folder, "
                "--resume_from_checkpoint latest to go on, or --overwrite to replace it"
            )
        return None
    checkpoint, skipped = find_checkpoint(config.resume_from_checkpoint, folder)
    for line in skipped:
        print(line)
    if checkpoint is not None:
        settings = canonical(asdict(config)) | sources_of(config)[0]
        check_same_run(checkpoint, settings, may_differ(config), canonical)
        saved, now = saved_processes(checkpoint), int(os.environ.get("WORLD_SIZE", "1"))
        if saved != now:
            raise UserError(
                f"cannot resume {shown(checkpoint)} with {counted(now, 'process', 'processes')}: it ran with "
                f"{saved}; give NUM_PROCESSES={saved}, or start anew in another folder"
            )
    return checkpoint


def sources_of(config: TrainConfig) -> tuple[dict[str, Any], dict[Path, str]]:
    """What a checkpoint records of what is learned, for a run does not go on with anything else, and the
    digest of each file: the concepts' images, own captions and masks.
    """
    digest, files = digest_images(data_files(config))
    prompts = [[concept.instance_prompt, concept.class_prompt] for concept in config.concepts()]
    return {IMAGES: digest} | ({PROMPTS: prompts} if config.concepts_list is not None else {}), files


def canonical(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with the base model's path in the place of a name or another spelling of it."""
    base = settings.get("pretrained_model_name_or_path")
    return settings | ({"pretrained_model_name_or_path": base_row(base).path} if base else {})


def may_differ(config: TrainConfig) -> frozenset[str]:
    """Settings that may change between a checkpoint and its resumption without changing what is learned.

    The last step is one, unless the learning rate or the boundaries between stages depend on it.
    """
    names = {each.name for each in fields(config) if each.metadata.get("may_differ")}
    free = config.lr_scheduler.startswith("constant") and len(config.stages) == 1
    return frozenset(names if free else names - {"max_train_steps"})


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

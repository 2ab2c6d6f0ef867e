"""What is checked of a training run before any model loads."""

import os
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
from utils.config.train_config import IMAGES, PROMPTS, TrainConfig
from utils.data.augmentation import FAR, LONGEST_PREFIX, NEAR
from utils.data.captions import captions_of
from utils.data.class_images import check_class_images
from utils.data.open import check_data, check_instance_images, data_files
from utils.learners.registry import LEARNERS
from utils.losses.contextualizer import check_contextualizer
from utils.losses.registry import asked_for
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

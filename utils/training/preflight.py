"""What is checked, and can be told, of a training run before any model loads."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTokenizer

from utils.bases.sd import check_base
from utils.errors import UserError
from utils.learners.cross_attention_kv import trainable_kv
from utils.learners.token_rows import check_tokens, check_within_limit
from utils.training.config import TrainConfig
from utils.training.prior import check_class_images
from utils.training.state import check_same_run, find_checkpoint

# Settings that may change between a checkpoint and its resumption without changing what is learned.
MAY_DIFFER = frozenset(
    "output_dir max_train_steps resume_from_checkpoint checkpointing_steps checkpoints_total_limit report_to "
    "tracker_name validation_prompt num_validation_images validation_steps dry_run no_safe_serialization "
    "sample_batch_size gradient_checkpointing".split()
)


def check_run(config: TrainConfig) -> Path | None:
    """Raise UserError for what only the files can tell; returns the checkpoint to resume from, if any."""
    base, revision = config.pretrained_model_name_or_path, config.revision
    check_base(base, revision)
    if Path(config.output_dir).is_file():
        raise UserError(f"--output_dir {config.output_dir} is a file: give a folder")
    if config.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise UserError("--mixed_precision fp16 needs a CUDA device: use bf16, or no")
    factor = pixels_per_latent(base, revision)
    if config.resolution and config.resolution % factor:
        raise UserError(f"--resolution {config.resolution}: this base model needs a multiple of {factor}")
    tokenizer = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer", revision=revision)
    concepts = config.concepts()
    check_tokens(tokenizer, [c.modifier_token for c in concepts], [c.initializer_token for c in concepts])
    tokenizer.add_tokens([c.modifier_token for c in concepts])
    for concept in concepts:
        caption = f"{'' if config.noaug else 'a far away '}{concept.instance_prompt}"  # the longest prefix
        check_within_limit(tokenizer, caption, [concept.modifier_token])
        if concept.class_data_dir:
            check_class_images(concept.class_data_dir, concept.class_prompt)
    if config.resume_from_checkpoint is None:
        return None
    checkpoint = find_checkpoint(config.resume_from_checkpoint, Path(config.output_dir))
    if checkpoint is not None:
        constant = config.lr_scheduler.startswith("constant")  # other schedules depend on the last step
        check_same_run(
            checkpoint, asdict(config), MAY_DIFFER if constant else MAY_DIFFER - {"max_train_steps"}
        )
    return checkpoint


def pixels_per_latent(base: str, revision: str | None) -> int:
    """The autoencoder's factor f, from its configuration file alone."""
    vae = AutoencoderKL.load_config(base, subfolder="vae", revision=revision)
    return 2 ** (len(vae["block_out_channels"]) - 1)


def trainable_parameters(config: TrainConfig) -> dict[str, int]:
    """How many numbers are trained, from the base model's configuration files alone."""
    base, revision = config.pretrained_model_name_or_path, config.revision
    text = CLIPTextConfig.from_pretrained(base, subfolder="text_encoder", revision=revision)
    counts = {"rows": len(config.modifier_tokens) * text.hidden_size}
    if config.recipe.trains_kv:
        settings = UNet2DConditionModel.load_config(base, subfolder="unet", revision=revision)
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(settings)
        counts["K/V"] = sum(weight.numel() for weight in trainable_kv(unet).values())
    return counts


def picture_side(config: TrainConfig) -> int:
    """The side of the training pictures: --resolution, else the base model's own."""
    base, revision = config.pretrained_model_name_or_path, config.revision
    unet = UNet2DConditionModel.load_config(base, subfolder="unet", revision=revision)
    return config.resolution or unet["sample_size"] * pixels_per_latent(base, revision)


def describe_run(config: TrainConfig, checkpoint: Path | None) -> str:
    """The resolved configuration, the number of trained parameters and the plan, for --dry_run."""
    counts = trainable_parameters(config)
    rates = dict(zip(("K/V", "rows"), config.learning_rates(), strict=True))
    pictures, side = config.train_batch_size * config.gradient_accumulation_steps, picture_side(config)
    terms = ["L_denoise"]
    terms += [f"{config.lambda_spl:g} · L_spl (at {config.spl_pool})"] if config.spl else []
    terms += [f"{config.prior_loss_weight:g} · L_prior"] if config.uses_prior else []
    return "\n".join(
        [
            json.dumps(asdict(config), indent=2),
            f"method: {config.recipe.name} ({config.recipe.source})",
            "trained: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()),
            f"loss: {' + '.join(terms)}",
            "learning rates on one process: " + ", ".join(f"{name} {rates[name]:g}" for name in counts),
            f"plan: {config.max_train_steps} steps of {pictures} pictures, {side} x {side}, per process, "
            + (f"resuming {checkpoint}" if checkpoint else "from the beginning"),
            *[
                f"concept: {c.modifier_token} from {c.instance_data_dir}: {c.instance_prompt}"
                for c in config.concepts()
            ],
        ]
    )

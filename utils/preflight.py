"""What is checked, and can be told, of a training run before any model loads."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTokenizer

from utils.config import TrainConfig
from utils.cross_attention import trainable_kv
from utils.errors import UserError
from utils.models import check_base
from utils.modifier_tokens import check_tokens
from utils.training_state import check_same_run, find_checkpoint

# Settings that may change between a checkpoint and its resumption without changing what is learned.
MAY_DIFFER = frozenset(
    "output_dir max_train_steps resume_from_checkpoint checkpointing_steps checkpoints_total_limit report_to "
    "tracker_name validation_prompt num_validation_images validation_steps dry_run no_safe_serialization "
    "sample_batch_size gradient_checkpointing".split()
)


def check_run(config: TrainConfig) -> Path | None:
    """Raise UserError for what only the files can tell; returns the checkpoint to resume from, if any."""
    check_base(config.pretrained_model_name_or_path, config.revision)
    if config.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise UserError("--mixed_precision fp16 needs a CUDA device: use bf16, or no")
    tokenizer = CLIPTokenizer.from_pretrained(
        config.pretrained_model_name_or_path, subfolder="tokenizer", revision=config.revision
    )
    concepts = config.concepts()
    check_tokens(tokenizer, [c.modifier_token for c in concepts], [c.initializer_token for c in concepts])
    if config.resume_from_checkpoint is None:
        return None
    checkpoint = find_checkpoint(config.resume_from_checkpoint, Path(config.output_dir))
    if checkpoint is not None:
        constant = config.lr_scheduler.startswith("constant")  # other schedules depend on the last step
        check_same_run(
            checkpoint, asdict(config), MAY_DIFFER if constant else MAY_DIFFER - {"max_train_steps"}
        )
    return checkpoint


def trainable_parameters(config: TrainConfig) -> dict[str, int]:
    """How many numbers are trained, from the base model's configuration files alone."""
    base = {
        "pretrained_model_name_or_path": config.pretrained_model_name_or_path,
        "revision": config.revision,
    }
    text = CLIPTextConfig.from_pretrained(**base, subfolder="text_encoder")
    counts = {"rows": len(config.modifier_tokens) * text.hidden_size}
    if config.recipe.trains_kv:
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(
                UNet2DConditionModel.load_config(**base, subfolder="unet")
            )
        counts["K/V"] = sum(weight.numel() for weight in trainable_kv(unet).values())
    return counts


def describe_run(config: TrainConfig, checkpoint: Path | None) -> str:
    """The resolved configuration, the number of trained parameters and the plan, for --dry_run."""
    counts = trainable_parameters(config)
    kv_rate, token_rate = config.learning_rates()
    pictures = config.train_batch_size * config.gradient_accumulation_steps
    terms = ["L_denoise"]
    terms += [f"{config.lambda_spl:g} · L_spl (at {config.spl_pool})"] if config.spl else []
    terms += [f"{config.prior_loss_weight:g} · L_prior"] if config.uses_prior else []
    return "\n".join(
        [
            json.dumps(asdict(config), indent=2),
            f"method: {config.recipe.name} ({config.recipe.source})",
            "trained: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()),
            f"loss: {' + '.join(terms)}",
            f"plan: {config.max_train_steps} steps of {pictures} pictures per process, "
            f"learning rates {kv_rate:g} (K/V) and {token_rate:g} (rows) on one process, "
            + (f"resuming {checkpoint}" if checkpoint else "from the beginning"),
            *[
                f"concept: {c.modifier_token} from {c.instance_data_dir}: {c.instance_prompt}"
                for c in config.concepts()
            ],
        ]
    )

"""The flags of the optimisation: batches, steps, learning rates, AdamW, precision, augmentation."""

from dataclasses import dataclass

from utils.common.errors import MORE_MEMORY, UserError
from utils.common.flags import option, seed_option
from utils.config.optimizers import OPTIMIZERS, check_optimizer

# diffusers' names, without piecewise_constant, which needs rules that no flag gives
LR_SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")


@dataclass(frozen=True)
class OptimisationFlags:
    """How the concept is learned from its images."""

    heading = "optimisation"

    output_dir: str = option(
        "ckpt/concept",
        "folder for the trained concept, logs and checkpoints",
        may_differ=True,
        set_by_evaluation=True,
    )
    seed: int = seed_option("seed of every random draw")
    resolution: int | None = option(None, "side of training images (default: the base model's)", minimum=8)
    train_batch_size: int = option(2, "instance images per process and micro-step", minimum=1)
    max_train_steps: int = option(500, "optimizer steps", minimum=1, may_differ=True)
    learning_rate: float = option(1e-5, "learning rate of K and V, or of the UNet", above=0)
    token_learning_rate: float | None = option(None, "learning rate of the tokens (default: same)", above=0)
    text_encoder_learning_rate: float | None = option(
        None, "learning rate of a trained text encoder (default: same)", above=0
    )
    scale_lr: bool = option(False, "multiply learning rates by batch size, accumulation steps, processes")
    lr_scheduler: str = option("constant", "learning rate schedule", choices=LR_SCHEDULERS)
    lr_warmup_steps: int = option(0, "warm-up steps of the schedule", minimum=0)
    gradient_accumulation_steps: int = option(1, "micro-steps per optimizer step", minimum=1)
    gradient_checkpointing: bool = option(False, "less memory, slower steps", may_differ=True)
    low_memory: bool = option(False, "the same, and images encoded one at a time", may_differ=True)
    optimizer: str = option(
        "adamw", "adamw8bit (package bitsandbytes) needs a quarter of its memory", choices=OPTIMIZERS
    )
    ema_decay: float | None = option(
        None, "save, and sample with, the moving average of what trains, e.g. 0.99", minimum=0, below=1
    )
    adam_beta1: float = option(0.9, "AdamW beta 1", minimum=0, below=1)
    adam_beta2: float = option(0.999, "AdamW beta 2", minimum=0, below=1)
    adam_weight_decay: float = option(1e-2, "AdamW weight decay", minimum=0)
    adam_epsilon: float = option(1e-8, "AdamW epsilon", above=0)
    max_grad_norm: float = option(1.0, "gradient clipping norm", above=0)
    mixed_precision: str = option("no", "precision of the frozen parts", choices=("no", "fp16", "bf16"))
    allow_tf32: bool = option(False, "CUDA: float32 products of 10 bits (TF32), which are faster")
    hflip: bool = option(False, "flip images left-right half of the time")
    noaug: bool = option(False, "no scale augmentation")
    latent_pool: int | None = option(
        None, "random views of each image, encoded once each (default: a new one every time)", minimum=1
    )

    def check_optimisation(self) -> None:
        """Raise UserError for a side that no autoencoder takes, a warm-up without a schedule for it, and as
        `check_optimizer` does."""
        if self.resolution is not None and self.resolution % 8:
            raise UserError(f"--resolution {self.resolution} is not a multiple of 8, the autoencoder's step")
        if self.lr_warmup_steps and self.lr_scheduler == "constant":
            raise UserError("--lr_warmup_steps needs a warm-up: use --lr_scheduler constant_with_warmup")
        check_optimizer(self)

    @property
    def needs_less(self) -> str:
        """The flags that make a run need less memory and are not given, in the order of what they cost."""
        flags = {
            "--low_memory": not self.low_memory,
            "--mixed_precision bf16": self.mixed_precision == "no",
            "--train_batch_size 1": self.train_batch_size > 1,
            "--optimizer adamw8bit": self.optimizer == "adamw",
        }
        given = [flag for flag, helps in flags.items() if helps]
        return f"give {', '.join([*given, 'or a smaller --resolution'])}; {MORE_MEMORY}"

    def scaled_rate(self, rate: str, processes: int = 1) -> float:
        """The learning rate that the field `rate` gives, else --learning_rate's; by --scale_lr times the
        images of an optimizer step, so that the official 1e-5 with batch 2 is 2e-5 on one process.
        """
        given = getattr(self, rate)
        images = self.train_batch_size * self.gradient_accumulation_steps * processes
        return (images if self.scale_lr else 1) * (self.learning_rate if given is None else given)

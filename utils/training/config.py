"""The training configuration: one frozen dataclass, its command line derived from its fields.

Nothing here imports torch, so that `--help` and a mistaken flag are answered at once.
"""

import json
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import write_json
from utils.flags import check_fields, option, parser_of, seed_option
from utils.training.concept import Concept, read_concepts_list
from utils.training.methods import METHODS, Method, Stage
from utils.training.replaced_flags import REPLACED_FLAGS

IMAGES = "images"  # in a saved configuration: the digest of the images that were learned
# diffusers' names, without piecewise_constant, which needs rules that no flag gives
LR_SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that a training run is given. Raises UserError when fields contradict each other.

    A field's metadata says whether it may differ between a checkpoint and the run that goes on from it.
    """

    # base model
    pretrained_model_name_or_path: str = option(
        "toon", "Stable Diffusion: toon, sd15, sd21, a folder or a Hub id"
    )
    revision: str | None = option(None, "revision of the base model on the Hub")
    variant: str | None = option(None, "variant of the base model's files, e.g. fp16")

    # concept
    instance_data_dir: str | None = option(None, "folder with the concept's pictures")
    instance_prompt: str | None = option(
        None, "caption of these images (default: a photo of a <new1> dog, with your token and class)"
    )
    class_data_dir: str | None = option(None, "folder of the class pictures (default: inside output_dir)")
    class_prompt: str | None = option(None, "prompt of the class pictures, e.g. 'a photo of a dog'")
    concepts_list: str | None = option(None, "JSON list of concepts, instead of the four flags above")
    modifier_token: str = option("<new1>", "new token of each concept, joined by +")
    initializer_token: str | None = option(
        None, "words the new tokens start from, joined by + (default: the method's rare words, or the class)"
    )
    cls_token: str | None = option(None, "class word of each concept, joined by +, e.g. 'teddy bear+barn'")

    # method
    method: str = option("classdiffusion", "what trains and which losses join", choices=METHODS)
    trains: str | None = option(None, "what trains instead, e.g. unet+token_rows (one-stage methods)")
    use_spl: bool = option(False, "semantic preservation loss, SPL (classdiffusion has it anyway)")
    spl_weight: float | None = option(
        None, "SPL weight (default: the method's, else 1); 0: logged", minimum=0
    )
    spl_pool: str = option("eos", "where SPL reads the modified phrase", choices=("eos", "modifier"))
    mlm_weight: float | None = option(
        None, "weight of masked language modelling (published: 1e-5 to 1e-3); 0: logged", minimum=0
    )
    with_prior_preservation: bool = option(False, "class pictures join each batch")
    prior_loss_weight: float = option(1.0, "weight of the class pictures' loss", minimum=0)
    dop_weight: float | None = option(
        None, "weight of output preservation: class captions give what the base gives; 0: logged", minimum=0
    )
    l2_weight: float | None = option(
        None, "weight of the squared distance of what trains from its start; 0: logged", minimum=0
    )
    num_class_images: int = option(200, "class pictures per concept; missing ones are generated", minimum=1)
    sample_batch_size: int = option(
        4, "batch size when generating class pictures", minimum=1, may_differ=True
    )

    # optimisation
    output_dir: str = option(
        "ckpt/concept", "folder for the trained concept, logs and checkpoints", may_differ=True
    )
    seed: int = seed_option("seed of every random draw")
    resolution: int | None = option(None, "training picture side (default: the base model's)", minimum=8)
    train_batch_size: int = option(2, "instance pictures per process and micro-step", minimum=1)
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
    adam_beta1: float = option(0.9, "AdamW beta 1", minimum=0, below=1)
    adam_beta2: float = option(0.999, "AdamW beta 2", minimum=0, below=1)
    adam_weight_decay: float = option(1e-2, "AdamW weight decay", minimum=0)
    adam_epsilon: float = option(1e-8, "AdamW epsilon", above=0)
    max_grad_norm: float = option(1.0, "gradient clipping norm", above=0)
    mixed_precision: str = option("no", "precision of the frozen parts", choices=("no", "fp16", "bf16"))
    hflip: bool = option(False, "flip pictures left-right half of the time")
    noaug: bool = option(False, "no scale augmentation")

    # checkpoints
    checkpointing_steps: int = option(250, "optimizer steps between checkpoints", minimum=1, may_differ=True)
    checkpoints_total_limit: int | None = option(
        None, "keep only the newest checkpoints", minimum=1, may_differ=True
    )
    overwrite: bool = option(False, "start anew in a folder that holds a run", may_differ=True)
    resume_from_checkpoint: str | None = option(
        None, "checkpoint folder, or 'latest' in output_dir", may_differ=True
    )
    no_safe_serialization: bool = option(False, "save .bin files instead of .safetensors", may_differ=True)

    # reports
    report_to: str = option(
        "none", "tracker beside the log file", choices=("none", "tensorboard", "wandb"), may_differ=True
    )
    tracker_name: str = option("classdiffusion", "project name given to the tracker", may_differ=True)
    validation_prompt: str | None = option(None, "prompt to sample while training", may_differ=True)
    validation_inference_steps: int | None = option(
        None, "denoising steps of a validation (default: the base model's)", minimum=1, may_differ=True
    )
    num_validation_images: int = option(4, "pictures per validation", minimum=1, may_differ=True)
    validation_steps: int = option(50, "optimizer steps between validations", minimum=1, may_differ=True)
    dry_run: bool = option(False, "print the configuration and the plan, then stop", may_differ=True)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.resolution is not None and self.resolution % 8:
            raise UserError(f"--resolution {self.resolution} is not a multiple of 8, the autoencoder's step")
        if self.lr_warmup_steps and self.lr_scheduler == "constant":
            raise UserError("--lr_warmup_steps needs a warm-up: use --lr_scheduler constant_with_warmup")
        if self.report_to != "none" and find_spec(self.report_to) is None:
            raise UserError(f"--report_to {self.report_to}: not installed; pip install it or use none")
        if self.overwrite and self.resume_from_checkpoint is not None:
            raise UserError("--overwrite contradicts --resume_from_checkpoint: give one of them")
        if self.noaug and self.recipe.view != "scaled":
            raise UserError(
                f"--noaug has no effect on --method {self.method}, which never scales: leave it out"
            )
        self._check_stages()
        self._check_tokens()
        self._check_spl()
        self._check_concept_flags()

    def _check_stages(self) -> None:
        if self.trains is not None and len(self.recipe.stages) > 1:
            raise UserError(f"--trains cannot replace the stages of --method {self.method}: leave it out")
        if self.max_train_steps < len(self.recipe.stages):
            raise UserError(
                f"--max_train_steps {self.max_train_steps}: --method {self.method} has "
                f"{len(self.recipe.stages)} stages, give at least a step for each"
            )

    def _check_tokens(self) -> None:
        tokens = self.modifier_tokens
        for token in tokens:
            if not token or "/" in token or any(map(str.isspace, token)):
                raise UserError(f"--modifier_token has '{token}': give single words like <new1>, joined by +")
        if len(set(tokens)) < len(tokens):
            raise UserError(f"--modifier_token {self.modifier_token} repeats one: give each concept its own")
        if self.cls_token is not None and (len(self.cls_tokens) != len(tokens) or not all(self.cls_tokens)):
            raise UserError(f"--cls_token '{self.cls_token}': need one class for each of {'+'.join(tokens)}")
        if self.start == "class" and self.cls_token is None:
            raise UserError(f"--method {self.method} starts each token from its class word: give --cls_token")
        if len(self.initializer_tokens) < len(tokens):
            raise UserError(
                f"--initializer_token {'+'.join(self.initializer_tokens)}: need {len(tokens)}, joined by +"
            )

    def _check_spl(self) -> None:
        if self.spl and self.cls_token is None:
            raise UserError("the semantic preservation loss needs --cls_token, e.g. --cls_token dog")
        if self.mlm_weight is not None and self.cls_token is None:
            raise UserError(
                "--mlm_weight needs --cls_token, e.g. --cls_token dog: class words are never masked"
            )
        if not self.spl and self.spl_weight is not None:
            raise UserError(f"--spl_weight has no effect on --method {self.method}: add --use_spl")
        if self.dop_weight is not None and self.cls_token is None:
            raise UserError(
                "--dop_weight needs the class in captions: give --cls_token, e.g. --cls_token dog"
            )

    def _check_concept_flags(self) -> None:
        optional = ("instance_prompt", "class_data_dir", "class_prompt")
        for name in ("instance_data_dir", *optional):
            given = getattr(self, name) is not None
            if given and self.concepts_list is not None:
                raise UserError(f"--concepts_list and --{name} contradict each other: give one of them")
            if given and name.startswith("class_") and not self.uses_prior:
                raise UserError(f"--{name} has no effect: add --with_prior_preservation")
        if self.instance_data_dir is None and self.concepts_list is None:
            raise UserError("--instance_data_dir is missing: give it, or a --concepts_list")
        if self.instance_prompt is not None and self.recipe.captions == "templates":
            raise UserError(
                f"--instance_prompt has no effect on --method {self.method}, whose captions are templates: "
                "leave it out"
            )

    @property
    def modifier_tokens(self) -> list[str]:
        return self.modifier_token.split("+")

    @property
    def initializer_tokens(self) -> list[str]:
        """The word that each token starts from, at least one for each."""
        if self.initializer_token is not None:
            return self.initializer_token.split("+")
        return self.cls_tokens if self.start == "class" else self.recipe.initializer.split("+")

    @property
    def start(self) -> str:
        """How an initial word names a row (`first_ids`); a word that was given is no class word."""
        given = self.initializer_token is not None and self.recipe.start == "class"
        return "word" if given else self.recipe.start

    @property
    def cls_tokens(self) -> list[str | None]:
        """One class word per modifier token; None where --cls_token was not given."""
        return self.cls_token.split("+") if self.cls_token is not None else [None] * len(self.modifier_tokens)

    @property
    def recipe(self) -> Method:
        """The row of METHODS."""
        return METHODS[self.method]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The method's stages, changed by --trains and --with_prior_preservation."""
        return tuple(
            Stage(
                tuple(self.trains.split("+")) if self.trains is not None else stage.trains,
                stage.share,
                stage.prior or self.with_prior_preservation,
            )
            for stage in self.recipe.stages
        )

    def plan(self) -> Iterator[tuple[Stage, int, int]]:
        """(stage, its first step, its last step); steps count from 1, and every stage has at least one."""
        stages, first = self.stages, 1
        total, done = sum(stage.share for stage in stages), 0.0
        for number, stage in enumerate(stages):
            done += stage.share
            left = len(stages) - number - 1  # stages that still need a step
            last = min(max(round(self.max_train_steps * done / total), first), self.max_train_steps - left)
            yield stage, first, last
            first = last + 1

    @property
    def spl(self) -> bool:
        """Whether the semantic preservation loss is asked for (with weight 0 it is only logged)."""
        return self.use_spl or self.recipe.spl_weight > 0

    @property
    def lambda_spl(self) -> float:
        """Weight of the semantic preservation loss: the flag, else the method's, else the paper's 1."""
        if not self.spl:
            return 0.0
        return self.spl_weight if self.spl_weight is not None else self.recipe.spl_weight or 1.0

    @property
    def uses_prior(self) -> bool:
        return any(stage.prior for stage in self.stages)

    def learning_rate_of(self, rate: str, prior: bool = False, processes: int = 1) -> float:
        """The learning rate that the field `rate` gives, else --learning_rate's, scaled if --scale_lr.

        The official 1e-5 with batch 2 is 2e-5 on one process, and twice that in a stage with class images, as
        in the published scripts of the Custom Diffusion family.
        """
        given = getattr(self, rate)
        scale = self.train_batch_size * self.gradient_accumulation_steps * processes if self.scale_lr else 1
        if self.scale_lr and prior and self.recipe.prior_doubles_rate:
            scale *= 2
        return scale * (self.learning_rate if given is None else given)

    def concepts(self) -> list[Concept]:
        """The concepts, from the flags or from --concepts_list, one per modifier token.

        Raises UserError for a broken list, a number of concepts other than that of tokens, a prompt without
        its token, and prior preservation without a class prompt.
        """
        entries = [asdict(self)]
        if self.concepts_list is not None:
            entries = read_concepts_list(Path(self.concepts_list))
        if len(entries) != len(self.modifier_tokens):
            raise UserError(
                f"--modifier_token {self.modifier_token} for {len(entries)} concept(s): give one each"
            )
        return [self._concept(index, entry) for index, entry in enumerate(entries)]

    def _concept(self, index: int, entry: dict[str, Any]) -> Concept:
        token, word = self.modifier_tokens[index], self.cls_tokens[index]
        subject = self.recipe.subject.format(token=token, cls=word or "").strip()
        prompt = entry.get("instance_prompt") or f"a photo of a {subject}"
        if token not in prompt:
            raise UserError(f"'{prompt}' lacks {token}: write it before the class word")
        class_prompt = entry.get("class_prompt") or (f"a photo of a {word}" if word else None)
        if self.uses_prior and not class_prompt:
            raise UserError(
                f"prior preservation needs a class for {token}: give --cls_token, or class_prompt"
            )
        class_data_dir = entry.get("class_data_dir") or Path(self.output_dir) / "class_images" / str(index)
        return Concept(
            modifier_token=token,
            initializer_token=self.initializer_tokens[index],
            cls_token=word,
            subject=subject,
            instance_prompt=prompt,
            instance_data_dir=Path(entry["instance_data_dir"]),
            class_prompt=class_prompt if self.uses_prior else entry.get("class_prompt"),
            class_data_dir=Path(class_data_dir) if self.uses_prior else None,
        )

    def save(self, path: Path, **facts: str) -> None:
        """Write the fields, as given, as JSON; facts: what else the run depends on."""
        write_json(Path(path), asdict(self) | facts)


def build_parser() -> ArgumentParser:
    """The command line of train_classdiffusion.py: the official flag names, one per field."""
    return parser_of(TrainConfig, "Learn one or several concepts from a few images each.", REPLACED_FLAGS)


def parse_config(argv: list[str] | None = None) -> TrainConfig:
    """The configuration that a command line asks for, its concepts checked; no image is read."""
    config = TrainConfig(**vars(build_parser().parse_args(argv)))
    config.concepts()
    return config


def read_config(path: Path) -> tuple[TrainConfig, list[str]]:
    """A saved configuration, and the names of fields that this version does not know.

    Fields that an earlier version lacked have their defaults. Raises UserError for a file that is not one.
    """
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable training configuration ({error})") from None
    if not isinstance(saved, dict):
        raise UserError(f"{path} is not a training configuration: it holds no object")
    known = {each.name for each in fields(TrainConfig)}
    unknown = sorted(saved.keys() - known - {IMAGES})
    return TrainConfig(**{k: v for k, v in saved.items() if k in known}), unknown

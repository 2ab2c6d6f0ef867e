"""The training configuration: one frozen dataclass of flag groups, each next to what it is about.

Nothing here imports torch, so that `--help` and a mistaken flag are answered at once.
"""

import json
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from utils.bases.registry import base_row
from utils.common.config_file import CONFIG_HELP, is_saved, read_flags
from utils.common.errors import UserError, short
from utils.common.files import shown, write_json
from utils.common.flags import check_fields, option, parser_of
from utils.concepts.names import vector_names
from utils.config.concepts import Concept, ConceptFlags, concepts_of
from utils.config.data_flags import DataFlags
from utils.config.measure_flags import MeasureFlags
from utils.config.method_flags import MethodFlags
from utils.config.methods import Stage, share_steps
from utils.config.optimisation_flags import OptimisationFlags
from utils.config.output_flags import CheckpointFlags, ReportFlags
from utils.config.presets import PRESET_HELP, Preset, preset_file, preset_values, without_unreached
from utils.config.replaced_flags import REPLACED_FLAGS

# In a saved configuration: the digest of the images that were learned, the prompts of a --concepts_list.
IMAGES, PROMPTS = "images", "prompts"
FACTS = (IMAGES, PROMPTS)


@dataclass(frozen=True)
class BaseFlags:
    """The base model that learns."""

    heading = "base model"

    pretrained_model_name_or_path: str = option(
        "toon", "toon, sd15, sd21, a folder, a .safetensors file or a Hub id", set_by_evaluation=True
    )
    revision: str | None = option(None, "revision of the base model on the Hub")
    variant: str | None = option(None, "variant of the base model's files, e.g. fp16")


@dataclass(frozen=True)
class TrainConfig(
    ReportFlags,
    MeasureFlags,
    CheckpointFlags,
    OptimisationFlags,
    DataFlags,
    MethodFlags,
    ConceptFlags,
    BaseFlags,
):  # a dataclass takes the fields of its last base first
    """Everything that a training run is given. Raises UserError when fields contradict each other.

    A field's metadata says whether it may differ between a checkpoint and the run that goes on from it
    (may_differ), and whether an evaluation sets it itself (set_by_evaluation).
    """

    def __post_init__(self) -> None:
        check_fields(self)
        self.check_optimisation()
        self.check_reports()
        self.check_checkpoints()
        self.check_method()
        self.check_concept()
        self._check_method_with_concept()
        self._check_starts()
        self._check_selection()
        if self.cls_token is None:
            self.check_without_class()
            self.check_measures_without_class()

    def _check_method_with_concept(self) -> None:
        if self.noaug and self.recipe.view != "scaled":
            raise UserError(
                f"--noaug has no effect on --method {self.method}, which never scales: leave it out"
            )
        if self.latent_pool is not None and (self.repeats or self.buckets):
            raise UserError(
                "--latent_pool has no effect where images come again unchanged (--noaug, or a method that "
                "never scales or crops), and does not know --buckets: leave it out"
            )
        if self.ema_decay is not None and len(self.stages) > 1:
            raise UserError(f"--ema_decay: --method {self.method} has several stages, leave it out")
        if self.max_train_steps < len(self.stages):
            raise UserError(
                f"--max_train_steps {self.max_train_steps}: --method {self.method} has "
                f"{len(self.stages)} stages, give at least a step for each"
            )
        if self.unet_steps is not None and self.unet_steps >= self.max_train_steps:
            raise UserError(
                f"--unet_steps {self.unet_steps} leaves none of --max_train_steps {self.max_train_steps} "
                "to the first stage: give fewer"
            )
        for name in ("class_data_dir", "class_prompt"):
            if getattr(self, name) is not None and not self.uses_prior:
                raise UserError(f"--{name} has no effect: add --with_prior_preservation")
        if self.instance_prompt is not None and self.recipe.captions == "templates":
            raise UserError(
                f"--instance_prompt has no effect on --method {self.method}, whose captions are templates: "
                "leave it out"
            )

    def _check_starts(self) -> None:
        if self.cls_token is None and self.start == "class":
            raise UserError(f"--method {self.method} starts each token from its class word: give --cls_token")
        wanted = len(self.modifier_tokens)
        if self.num_vectors > 1 and self.spl_pool == "modifier":
            raise UserError(
                f"--spl_pool modifier reads one vector, --num_vectors is {self.num_vectors}: leave out one"
            )
        if len(self.initializer_tokens) < wanted:
            raise UserError(
                f"--initializer_token {'+'.join(self.initializer_tokens)}: need {wanted}, joined by +"
            )

    def _check_selection(self) -> None:
        if self.select_checkpoint is None:
            return
        if self.select_checkpoint == "validation" and not self.validation_prompt:
            raise UserError("--select_checkpoint validation judges images: give --validation_prompt")
        if self.checkpoints_total_limit is not None:
            raise UserError(
                "--select_checkpoint needs all checkpoints, --checkpoints_total_limit removes some: give one"
            )
        if self.checkpointing_steps >= self.max_train_steps and len(self.stages) == 1:
            raise UserError(
                f"--select_checkpoint has one checkpoint to choose from: give --checkpointing_steps below "
                f"{self.max_train_steps}"
            )

    @property
    def initializer_tokens(self) -> list[str]:
        """The word that each token starts from, at least one for each."""
        if self.initializer_token is not None:
            return self.initializer_token.split("+")
        return self.cls_tokens if self.start == "class" else self.recipe.initializer.split("+")

    @property
    def start(self) -> str:
        """How an initial word names a row (`first_ids`); a word that was given is not a class word."""
        given = self.initializer_token is not None and self.recipe.start == "class"
        return "word" if given else self.recipe.start

    def vectors(self) -> tuple[list[str], list[str]]:
        """What the tokenizer calls each vector of each concept's token, and the word that it starts from."""
        names: list[str] = []
        words: list[str] = []
        for concept in self.concepts():
            names += vector_names(concept.modifier_token, self.num_vectors)
            words += [concept.initializer_token] * self.num_vectors
        return names, words

    def plan(self) -> Iterator[tuple[Stage, int, int]]:
        """(stage, its first step, its last step)."""
        stages = self.stages
        if self.unet_steps is not None:
            steps = (self.max_train_steps - self.unet_steps, self.unet_steps)
            stages = tuple(replace(stage, share=share) for stage, share in zip(stages, steps, strict=True))
        return share_steps(stages, self.max_train_steps)

    @property
    def repeats(self) -> bool:
        """Whether instance images come again unchanged, flips apart."""
        return self.noaug or self.recipe.view == "square"

    @property
    def encodes_once(self) -> bool:
        """Whether images come again unchanged, class images and those of a pool too, so that they are
        encoded once."""
        return self.repeats or self.uses_prior or self.latent_pool is not None

    def learning_rate_of(self, rate: str, prior: bool = False, processes: int = 1) -> float:
        """The learning rate of the field `rate`, see `scaled_rate`.

        Under --scale_lr twice that in a stage with class images, as in the published scripts of the Custom
        Diffusion family.
        """
        doubled = self.scale_lr and prior and self.recipe.prior_doubles_rate
        return (2 if doubled else 1) * self.scaled_rate(rate, processes)

    def concepts(self) -> list[Concept]:
        """One per modifier token; raises UserError as `concepts_of` does. A --concepts_list is read once."""
        return self._concepts

    @cached_property
    def _concepts(self) -> list[Concept]:
        return concepts_of(self)

    def save(self, path: Path, **facts: Any) -> None:
        """Write the fields, as given, as JSON; facts: what else the run depends on."""
        write_json(Path(path), asdict(self) | facts)


def build_parser() -> ArgumentParser:
    """The command line of train_classdiffusion.py: a flag for each field, --no_NAME for those that a file may
    switch on, --config and --preset.
    """
    parser = parser_of(TrainConfig, "Learn one or several concepts from a few images each.", REPLACED_FLAGS)
    parser.add_argument("--config", metavar="path", help=CONFIG_HELP)
    parser.add_argument("--preset", metavar="path", help=PRESET_HELP)
    for each in fields(TrainConfig):
        if each.default is False:
            parser.add_argument(f"--no_{each.name}", action="store_false", dest=each.name, help=SUPPRESS)
    return parser


def parse_config(argv: Sequence[str] | None = None) -> TrainConfig:
    """The configuration of a command line, see `parse_with_preset`."""
    return parse_with_preset(argv)[0]


def parse_with_preset(argv: Sequence[str] | None = None) -> tuple[TrainConfig, Preset]:
    """The configuration of a command line, and what the preset gave to it.

    Its flags win over those of its --config file, these over the preset of the base and the method, and that
    over the defaults. Its concepts are checked; no image is read.
    """
    given, preset = resolve(argv)
    config = TrainConfig(**preset.values, **given)
    config.concepts()
    return config, preset


def resolve(argv: Sequence[str] | None) -> tuple[dict[str, Any], Preset]:
    """(field -> value as flags and --config give them, what the preset adds); the limits are not checked."""
    given = vars(build_parser().parse_args(argv))
    file, name = given.pop("config", None), given.pop("preset", None)
    if file is not None:
        given = read_flags(TrainConfig, Path(file), FACTS) | given
    if file is not None and is_saved(Path(file)):  # it holds every value
        if name is not None:
            raise UserError(f"--preset has no effect on --config {shown(file)}, a run's: leave it out")
        return given, Preset()
    base = given.get("pretrained_model_name_or_path", TrainConfig.pretrained_model_name_or_path)
    if name is None:
        from utils.bases.pretrained import fetch_family  # imports the Hub's client

        fetch_family(base, given.get("revision"))
    path = preset_file(name, base_row(base).preset)
    if path is None:
        return given, Preset()
    values = preset_values(
        TrainConfig,
        path,
        given.get("method", TrainConfig.method),
        several="+" in given.get("modifier_token", ""),
        use_spl=given.get("use_spl", False),
    )
    if given.get("trains") is not None:
        values = without_unreached(values, given["trains"])
    values = {name: value for name, value in values.items() if name not in given}
    return given, Preset(path=path, values=values)


def read_config(path: Path) -> tuple[TrainConfig, list[str]]:
    """A saved configuration, and the names of fields that this version does not know.

    Fields that an earlier version lacked have their defaults. Raises UserError for a file that is not one.
    """
    try:
        saved = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a readable training configuration ({short(error, 200)})") from None
    if not isinstance(saved, dict):
        raise UserError(f"{path} is not a training configuration: it holds no object")
    known = {each.name for each in fields(TrainConfig)}
    unknown = sorted(saved.keys() - known - {*FACTS})
    return TrainConfig(**{k: v for k, v in saved.items() if k in known}), unknown

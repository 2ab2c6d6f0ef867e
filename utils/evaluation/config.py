"""The flags of an evaluation: one frozen dataclass, checked before any library loads."""

from dataclasses import dataclass, fields
from pathlib import Path

from utils.common.cluster import EXECUTORS
from utils.common.errors import UserError, short
from utils.common.flags import SEEDS, check_fields, option
from utils.config.methods import METHODS
from utils.sampling.settings import check_rotation
from utils.scores.judges import KINDS, judge_flags
from utils.scores.table import SCORES

MODES = ("dataset", "concept", "generated")  # what there is to evaluate: one of them
DRAWN = ("dataset", "concept")  # the modes that draw images
HOURS = 12.0  # time limit of a job


def split(names: str | None) -> list[str]:
    """'a, b' as ['a', 'b']; [] for None."""
    return [name.strip() for name in names.split(",")] if names else []


JudgeFlags = judge_flags(KINDS.values())


def without_effect(config: type, mode: str) -> frozenset[str]:
    """The fields of an EvaluationConfig that a mode does not look at."""
    return frozenset(each.name for each in fields(config) if mode not in each.metadata.get("modes", MODES))


@dataclass(frozen=True)
class EvaluationConfig(JudgeFlags):
    """Everything an evaluation needs to know. Raises UserError when fields contradict each other.

    A field's `modes` are those that look at it: in another it is no flag (`without_effect`).
    """

    # what to evaluate
    dataset: str | None = option(None, "the benchmark", modes=("dataset",), positional=True)
    concept: Path | None = option(
        None, "a folder that train_classdiffusion.py wrote", modes=("concept",), positional=True
    )
    generated: Path | None = option(
        None,
        "a folder of images; their prompts are in PNG metadata or file names",
        modes=("generated",),
        positional=True,
    )
    data_dir: Path | None = option(None, "your copy of the benchmark", modes=("dataset",))
    methods: str | None = option(
        None, f"of base (untouched, given class prompts), {', '.join(METHODS)}; joined by commas", modes=DRAWN
    )
    subjects: str | None = option(
        None, "these subjects only, joined by commas", longest=10_000, modes=("dataset",)
    )
    max_prompts: int | None = option(None, "the first prompts of each subject only", minimum=1, modes=DRAWN)
    train_flags: str | None = option(
        None,
        "more for train_classdiffusion.py: --train_flags='--max_train_steps=250 --seed=1'; "
        "{} in them is the subject, e.g. in --validation_prompt",
        longest=10_000,
        modes=("dataset",),
    )
    base: str | None = option(
        None,
        "Stable Diffusion, by name, folder, file or Hub id, to train and sample (default: the benchmark's); "
        "of generated images: what drew them (default: as their metadata says)",
        modes=("dataset", "generated"),
    )
    real: Path | None = option(None, "the subject's own images", modes=("generated",))
    generated_class: Path | None = option(None, "images of the class alone, for PRES", modes=("generated",))
    prompts_file: Path | None = option(
        None, "one prompt per line, {} where the subject stands", modes=("concept", "generated")
    )
    cls_token: str | None = option(
        None, "class word of the subject, e.g. dog", modes=("concept", "generated")
    )
    modifier_token: str | None = option(
        None, "the subject's token in the prompts (default: <new1>)", modes=("generated",)
    )

    # sampling
    num_images: int | None = option(None, "images per prompt (default: 4)", minimum=1, modes=DRAWN)
    num_class_images: int | None = option(
        None, "images of the class alone, for PRES (default: 10)", minimum=1, modes=DRAWN
    )
    seed: int | None = option(
        None, "image i of a prompt uses seed + i (default: 0)", minimum=0, below=SEEDS, modes=DRAWN
    )
    num_inference_steps: int | None = option(
        None, "DDIM steps (default: the base model's)", minimum=1, modes=DRAWN
    )
    guidance_scale: float | None = option(None, "default: the base model's", minimum=0, modes=DRAWN)
    eta: float | None = option(None, "noise per step, 0 to 1 (default: the base model's)", modes=DRAWN)
    embedding_adjustment: float | None = option(
        None,
        "turn text states towards those of the class prompt by this share of the angle, 0 to 1 "
        "(published: 0.2)",
        modes=DRAWN,
    )
    embedding_adjustment_norm: float | None = option(
        None, "and mix their lengths by this share, 0 to 1 (default: 0.5, as published)", modes=DRAWN
    )
    batch_size: int | None = option(None, "images drawn at a time (default: 8)", minimum=1, modes=DRAWN)

    # scoring
    metrics: str | None = option(
        None, f"joined by commas (default: those of {','.join(SCORES)} that there are judges and images for)"
    )
    blip_head: str = option("itc", "how BLIP scores: itc or itm")
    output_dir: Path = option(Path("results"), "the results folder")

    # more than one machine
    executor: str | None = option(
        None,
        "each subject and method as a job, by the package submitit: of Slurm, or as processes here",
        choices=EXECUTORS,
        modes=("dataset",),
    )
    partition: str | None = option(None, "Slurm's (default: its own default)", modes=("dataset",))
    gpus: int | None = option(
        None, "jobs at a time, each with a GPU of its own (default: 1)", minimum=1, modes=("dataset",)
    )
    hours: float | None = option(
        None,
        "time limit of a job (default: 12); what it ends, the same command goes on with",
        above=0,
        modes=("dataset",),
    )
    only: str | None = option(
        None, "SUBJECT,METHOD: this job alone, and no table; what --executor submits", modes=("dataset",)
    )
    dry_run: bool = option(
        False, "count the trainings and images, time one step of each, estimate the whole; write nothing"
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if all(getattr(self, name) is None for name in MODES):
            raise UserError("nothing to evaluate: name a benchmark, a concept's folder or a folder of images")
        check_rotation(self.embedding_adjustment, self.embedding_adjustment_norm)
        self._check_executor()
        self._check_names("methods")
        self._check_names("subjects")
        self._check_names("metrics")
        for name in split(self.metrics):
            if name not in SCORES:
                raise UserError(f"unknown metric '{short(name)}'; choose from {', '.join(SCORES)}")

    def _check_executor(self) -> None:
        for flag in ("partition", "gpus", "hours"):
            if getattr(self, flag) is not None and self.executor is None:
                raise UserError(f"--{flag} has no effect without --executor: leave it out, or add that")
        if self.partition is not None and self.executor != "slurm":
            raise UserError("--partition is Slurm's, and has no effect on --executor local: leave it out")
        if self.only is not None and (self.executor or self.dry_run or len(split(self.only)) != 2):
            raise UserError(
                "--only is SUBJECT,METHOD, without --executor and --dry_run: it is one of their jobs"
            )

    @property
    def at_once(self) -> int:
        """Jobs at a time."""
        return self.gpus or 1

    def _check_names(self, flag: str) -> None:
        given = getattr(self, flag)
        names = split(given)
        if given is not None and not all(names):
            raise UserError(f"--{flag} '{short(given)}' has an empty name; join names by single commas")
        if len(set(names)) < len(names):
            raise UserError(f"--{flag} {short(given)} repeats one; name each once")

    @property
    def mode(self) -> str:
        """'dataset', 'concept' or 'generated'."""
        return next(name for name in MODES if getattr(self, name) is not None)

    @property
    def seeds(self) -> list[int]:
        """Of the images of each prompt."""
        first = self.seed or 0
        return list(range(first, first + (4 if self.num_images is None else self.num_images)))

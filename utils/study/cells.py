"""A study's cells: a training of one subject with one seed, and every checkpoint of it drawn and judged.

results/
  <training>/seed-<n>/<subject>/    concept/, step-00300/, step-00300-adjusted-0.2/
  <training>/seed-<n>/<subject>/step-…/   images/, class/, records.jsonl, scores.json
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from utils.common.errors import UserError
from utils.common.files import remove
from utils.config.train_config import TrainConfig
from utils.evaluation.data_sets import Subject
from utils.evaluation.folder import Settings, is_scored
from utils.evaluation.runs import draw_missing
from utils.evaluation.scoring import Scorer, score_subject
from utils.evaluation.shots import Shot, extra_shots, shots_of
from utils.evaluation.sources import Source
from utils.evaluation.training_process import config_of, is_trained, named_by, preset_flags, train
from utils.learners.registry import check_has_text_states
from utils.sampling.settings import ADJUSTED_NORM
from utils.study.plan import Plan, Variant
from utils.training.lock import claim
from utils.training.preflight import check_settings

RATES = ("learning_rate", "token_learning_rate", "text_encoder_learning_rate")


@dataclass(frozen=True)
class Training:
    """A variant with its flags for a base: the preset's, then its own. steps: of the judged checkpoints."""

    variant: Variant
    flags: tuple[str, ...]
    config: TrainConfig  # of the first subject, for counting
    steps: tuple[int, ...]

    @property
    def judged(self) -> dict[str, float | None]:
        """What each checkpoint is judged as -> its embedding adjustment."""
        name, share = self.variant.name, self.variant.adjustment
        return {name: None} | ({f"{name},adjusted={share:g}": share} if share is not None else {})


@dataclass(frozen=True)
class Cell:
    """A training of a subject with a seed."""

    training: Training
    subject: Subject
    seed: int

    def folder(self, results: Path) -> Path:
        return results / self.training.variant.name / f"seed-{self.seed}" / self.subject.name

    def place(self, step: int, adjustment: float | None) -> str:
        """Of a judged checkpoint, within the results."""
        suffix = "" if adjustment is None else f"-adjusted-{adjustment:g}"
        return f"{self.folder(Path())}/step-{step:05d}{suffix}"

    def places(self) -> Iterator[tuple[int, str, float | None]]:
        """(step, what it is judged as, its adjustment) of everything that is judged."""
        for step in self.training.steps:
            for name, adjustment in self.training.judged.items():
                yield step, name, adjustment


def trainings_of(plan: Plan, source: Source) -> list[Training]:
    """The plan's variants on the source's base. Raises UserError, naming the arm, for wrong flags."""
    subject = max(source.subjects, key=lambda each: len(each.individuals))
    trainings = []
    for variant in plan.variants:
        with _named_in_errors(f"{plan.path}: [arms.{variant.arm}]"):
            trainings.append(_training(variant, source, subject))
    return trainings


def _training(variant: Variant, source: Source, subject: Subject) -> Training:
    base, given = source.base.path, list(variant.flags)
    preset = preset_flags(subject, variant.method, base, given)
    config = config_of(subject, variant.method, base, [*preset, *given])
    named = {flag.partition("=")[0] for flag in given}
    if variant.rate != 1:
        rates = {name: getattr(config, name) for name in RATES}
        given += [f"--{name}={variant.rate * rate!r}" for name, rate in rates.items() if rate is not None]
    length = config.max_train_steps
    if "--max_train_steps" not in named:
        length = max(1, round(variant.steps * config.max_train_steps))
        given.append(f"--max_train_steps={length}")
    if "--checkpointing_steps" not in named:
        given.append(f"--checkpointing_steps={math.ceil(length / variant.checkpoints)}")
    config = config_of(subject, variant.method, base, [*preset, *given])
    check_settings(config)
    if variant.adjustment is not None:
        check_has_text_states([name for stage in config.stages for name in stage.trains], variant.name)
    every = config.checkpointing_steps
    steps = sorted({*range(every, length + 1, every), length})
    return Training(variant, (*preset, *given), config, tuple(steps))


@contextmanager
def _named_in_errors(where: str) -> Iterator[None]:
    """A mistake in the block is one of the plan."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {str(error).removeprefix('--train_flags: ')}") from None


def cells_of(trainings: Sequence[Training], subjects: Sequence[Subject], seeds: Sequence[int]) -> list[Cell]:
    """All of them: with one seed every subject with every training, then with the next, so that a study which
    is stopped early has compared like with like."""
    return [Cell(each, subject, seed) for seed in seeds for subject in subjects for each in trainings]


def is_done(cell: Cell, results: Path, settings: Settings) -> bool:
    """Whether every checkpoint has its scores."""
    return all(
        is_scored(results / cell.place(step, share), settings.metrics) for step, _, share in cell.places()
    )


def shots_at(
    cell: Cell, place: str, settings: Settings, source: Source
) -> tuple[list[Shot], list[list[Shot]], list[Shot], list[Shot]]:
    """(those of the prompts, of the class alone for each individual, of unrelated prompts, the base's of
    these), as an evaluation of the method draws them; all but the last in `place`."""
    method = cell.training.variant.method
    own = f"{method}/{cell.subject.name}"

    def moved(shots: Sequence[Shot]) -> list[Shot]:
        return [replace(shot, image=f"{place}{shot.image.removeprefix(own)}") for shot in shots]

    extra = extra_shots(cell.subject, method, settings, source.base.world)
    shots = moved(shots_of(cell.subject, method, settings.seeds, named_by(method, cell.training.flags)))
    return shots, [moved(group) for group in extra.of_class], moved(extra.unrelated), extra.unrelated_base


def run_cell(
    cell: Cell, results: Path, source: Source, settings: Settings, batch_size: int, scorer: Scorer
) -> bool:
    """Trains, draws and judges what is not there yet. False where another process is at this cell."""
    folder, subject = cell.folder(results), cell.subject
    with claim(folder) as mine:
        if not mine:
            return False
        concept, training = folder / "concept", cell.training
        if not is_trained(concept) and not is_done(cell, results, settings):
            flags = [*training.flags, f"--seed={cell.seed}"]
            how = (subject, training.variant.method, source.base.path, flags, concept, scorer.device)
            train(*how, keep_checkpoints=True)
        for step, _, share in cell.places():
            if not is_scored(results / cell.place(step, share), settings.metrics):
                _judge(cell, step, share, results, source, settings, batch_size, scorer)
        for checkpoint in concept.glob("checkpoint-*"):
            remove(checkpoint)
    return True


def _judge(
    cell: Cell,
    step: int,
    adjustment: float | None,
    results: Path,
    source: Source,
    settings: Settings,
    batch_size: int,
    scorer: Scorer,
) -> None:
    """Draws and scores the images of one checkpoint."""
    place = cell.place(step, adjustment)
    shots, of_class, unrelated, of_base = shots_at(cell, place, settings, source)
    norm = None if adjustment is None else ADJUSTED_NORM
    drawing = replace(settings.drawing, embedding_adjustment=adjustment, embedding_adjustment_norm=norm)
    concept = cell.folder(results) / "concept" / f"checkpoint-{step}"
    wanted = [*shots, *(shot for group in of_class for shot in group), *unrelated]
    draw_missing(results, wanted, source, concept, drawing, batch_size, scorer.device)
    draw_missing(results, of_base, source, None, settings.drawing, batch_size, scorer.device)
    files = [[results / shot.image for shot in group] for group in of_class]
    pair = tuple([results / shot.image for shot in each] for each in (unrelated, of_base))
    score_subject(results, results / place, cell.subject, shots, files, scorer, pair)
    if scorer.device is not None and torch.device(scorer.device).type == "cuda":
        torch.cuda.empty_cache()  # a training is a process of its own, and needs the room

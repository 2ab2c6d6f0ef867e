"""A whole study: checks, then every training that a plan asks for, its checkpoints judged, then the table.

Any number of processes may be at work in one folder, on one machine or on several that share it: each takes a
cell (a training with its checkpoints) that nobody holds.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from utils.bases.devices import choose_device_dtype
from utils.common.errors import UserError
from utils.common.files import check_writable_folder, write_json
from utils.common.words import counted, duration
from utils.evaluation.config import EvaluationConfig
from utils.evaluation.data_sets import DataSet, copy_pictures
from utils.evaluation.evaluation import check_source, metrics_of, models_of, on_cpu, settings_of
from utils.evaluation.folder import BASE, Settings, check_settings, is_scored
from utils.evaluation.plan import Work, add_training, measure
from utils.evaluation.runs import run_job
from utils.evaluation.scoring import Scorer, check_metrics, needed_kinds
from utils.evaluation.sources import Source, source_of
from utils.evaluation.training_process import is_trained
from utils.scores.judges import KINDS
from utils.study.cells import Cell, Training, cells_of, is_done, run_cell, shots_at, trainings_of
from utils.study.plan import Plan
from utils.study.report import write_results
from utils.study.results import LIKENESS
from utils.training.lock import claim


@dataclass(frozen=True)
class Study:
    """What a plan comes to on a benchmark and a base. models: the judges by kind."""

    plan: Plan
    config: EvaluationConfig
    source: Source
    settings: Settings
    models: dict[str, str]
    trainings: list[Training]
    cells: list[Cell]

    @property
    def results(self) -> Path:
        return self.config.output_dir

    @property
    def subjects(self) -> list[str]:
        return [subject.name for subject in self.source.subjects]

    def left(self) -> list[Cell]:
        """The cells that lack scores."""
        return [cell for cell in self.cells if not is_done(cell, self.results, self.settings)]


def prepare(plan: Plan, config: EvaluationConfig, data_sets: Mapping[str, DataSet]) -> Study:
    """The study. config: of the benchmark, with method base alone.

    Raises UserError for what no training or judge could use, before a model loads and anything is written.
    """
    check_writable_folder(config.output_dir, "output_dir")
    source = source_of(config, data_sets)
    trainings = trainings_of(plan, source)
    metrics, models = metrics_of(config, source), models_of(config, source)
    check_metrics(metrics, models, config.blip_head)
    for kind in KINDS:
        if getattr(config, kind) is not None and kind not in needed_kinds(metrics):
            raise UserError(
                f"--{kind} has no effect on the plan's metrics, {', '.join(metrics)}: leave it out"
            )
    if LIKENESS not in metrics or (source.word_judge is None and "clip_t" not in metrics):
        raise UserError(
            f"{plan.path}: metrics are {', '.join(metrics)}; a study needs {LIKENESS} and, where no "
            "words can be read off images, clip_t"
        )
    settings = settings_of(config, source, metrics, models)
    flags = {each.variant.name: list(each.flags) for each in trainings}
    drawing = replace(settings.drawing, train_flags=flags)
    # Subjects may be added to a folder: each is paired with itself. subjects.json names them.
    settings = replace(settings, methods=[BASE, *flags], subjects=[], drawing=drawing)
    check_settings(config.output_dir, settings)
    check_source(source, settings, models)
    cells = cells_of(trainings, source.subjects, plan.seeds)
    return Study(plan, config, source, settings, models, trainings, cells)


def describe(study: Study, device: torch.device) -> Iterator[str]:
    """The lines of --dry_run: trainings, images, room on the disk, time. Loads the base to time its steps."""
    whole, left = Work(), Work()
    undone = {cell.folder(study.results) for cell in study.left()}
    for cell in study.cells:
        _add_cell(whole, study, cell)
        if cell.folder(study.results) in undone:
            _add_cell(left, study, cell, only_missing=True)
    for training in study.trainings:
        yield f"  {training.variant.name}: judged at steps {', '.join(map(str, training.steps))}"
    yield (
        f"{counted(len(study.source.subjects), 'subject')} x {counted(len(study.trainings), 'training')} x "
        f"{counted(len(study.plan.seeds), 'seed')}: {counted(whole.trainings, 'training')}, "
        f"{whole.trainings - left.trainings:,} done; {counted(whole.images, 'image')}, "
        f"{whole.images - left.images:,} done"
    )
    if not left.images and not left.trainings:
        yield "nothing is left to train or to draw"
        return
    learn, draw = measure(study.source.base, device, study.settings.drawing.dtype)
    yield f"measured on {device}: {learn:.3g} s an image of a training step, {draw:.3g} s a denoising step"
    seconds = left.passes * learn + left.steps * draw
    yield f"left: {duration(seconds)} in one process, without loading models and scoring"


def _add_cell(work: Work, study: Study, cell: Cell, only_missing: bool = False) -> None:
    """Adds a cell's training and the images of its checkpoints, or what of them is not there."""
    if not (only_missing and is_trained(cell.folder(study.results) / "concept")):
        add_training(work, study.source, cell.training.config, len(cell.subject.individuals))
    for step, _, share in cell.places():
        place = cell.place(step, share)
        if only_missing and is_scored(study.results / place, study.settings.metrics):
            continue
        shots, of_class, unrelated, _ = shots_at(cell, place, study.settings, study.source)
        shots = [*shots, *(shot for group in of_class for shot in group), *unrelated]
        count = sum(not (only_missing and (study.results / shot.image).is_file()) for shot in shots)
        work.images += count
        work.steps += count * study.settings.drawing.num_inference_steps


def carry_out(study: Study) -> str | None:
    """Does what nobody has done and nobody is doing; then the table of all that is judged, None where nothing
    is."""
    results, source, settings = study.results, study.source, study.settings
    if source.data_set.draw:
        source.data_set.draw(source.subjects)
    copy_pictures(source.subjects)
    write_json(results / "settings.json", settings.as_json())
    write_json(results / "subjects.json", [subject.describe() for subject in source.subjects])
    scorer = Scorer(settings.metrics, study.models, study.config.blip_head, device_of(), source.word_judge)
    batch_size = study.config.batch_size or 8
    for subject in source.subjects:
        with claim(results / BASE / subject.name) as mine:
            if mine:
                run_job(results, source, subject, BASE, settings, batch_size, scorer)
    for cell in _unclaimed(study):
        run_cell(cell, results, source, settings, batch_size, scorer)
    return table_of(study)


def _unclaimed(study: Study) -> Iterator[Cell]:
    """The cells that are left, one after the other; those that another process holds are come back to."""
    tried: Sequence[Cell] = ()
    while (left := study.left()) and left != tried:
        for cell in left:
            done = len(study.cells) - len(study.left())
            name = f"{cell.training.variant.name}, {cell.subject.name}, seed {cell.seed}"
            print(f"[{done} of {len(study.cells)} done] {name}", flush=True)
            yield cell
        tried = left


def table_of(study: Study) -> str | None:
    """Writes the results so far; see `write_results`."""
    left = len(study.left())
    if left:
        print(f"{counted(left, 'training')} of {len(study.cells)} not judged to the end yet", flush=True)
    return write_results(study.results, study.plan, study.settings, study.cells, study.subjects)


def device_of() -> torch.device:
    """The CPU, or the GPU of this process: under torchrun each has one of its own."""
    device = choose_device_dtype("cpu" if on_cpu() else None)[0]
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if device.type == "cuda" else device

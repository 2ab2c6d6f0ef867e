"""One subject and one method of an evaluation: trained, drawn, scored; nothing of it is done twice.

Either here, or as a job on another machine, which is this program with `--only`.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copyfile

import torch

from utils.bases.families import load_pipeline
from utils.common.cluster import POLL, Cluster, run_jobs
from utils.common.errors import UserError, short
from utils.common.flags import as_argv
from utils.common.images import open_image, save_png
from utils.common.words import counted
from utils.concepts.load import load_concept
from utils.evaluation.config import HOURS, EvaluationConfig, split
from utils.evaluation.data_sets import Subject
from utils.evaluation.folder import BASE, SETTINGS_FILE, Drawing, Settings, is_scored
from utils.evaluation.scoring import Scorer, score_subject
from utils.evaluation.shots import Shot, extra_shots, shots_of
from utils.evaluation.sources import Source
from utils.evaluation.training_process import is_trained, train
from utils.sampling.embedding_adjustment import adjustment
from utils.sampling.images import draw
from utils.training.lock import RunLock, is_held


def run_job(
    results: Path,
    source: Source,
    subject: Subject,
    method: str,
    settings: Settings,
    batch_size: int,
    scorer: Scorer,
) -> None:
    """One subject and one method: trained, drawn, scored; what is there already stays as it is."""
    folder = results / method / subject.name
    if is_scored(folder, scorer.metrics):
        return
    if source.images:
        shots, of_class = [shot for shot, _ in source.images], [list(source.class_images)]
        unrelated = ([], [])
        take_in(results, source)
    else:
        shots = shots_of(subject, method, settings.seeds, source.subject_of(method))
        extra = extra_shots(subject, method, settings, source.base.world)
        of_class = [[results / shot.image for shot in group] for group in extra.of_class]
        unrelated = tuple([results / s.image for s in of] for of in (extra.unrelated, extra.unrelated_base))
        concept = None if method == BASE else concept_of(folder, source, subject, method, scorer.device)
        how = (settings.drawing, batch_size, scorer.device)
        draw_missing(results, extra.unrelated_base, source, None, *how)
        draw_missing(results, shots + extra.of_method, source, concept, *how)
    score_subject(results, folder, subject, shots, of_class, scorer, unrelated)


def run_only(
    results: Path, source: Source, only: str, settings: Settings, batch_size: int, scorer: Scorer
) -> None:
    """The job "SUBJECT,METHOD" of an evaluation. Waits for an earlier one that is still at work on it.

    Raises UserError for a job that is none, or whose evaluation has not begun.
    """
    name, method = split(only)
    subject = next((each for each in source.subjects if each.name == name), None)
    if subject is None or method not in source.methods:
        raise UserError(f"--only {short(only)} is not one of this evaluation's subjects and methods")
    if not (results / SETTINGS_FILE).is_file():
        raise UserError(f"--only belongs to an evaluation with --executor, which has not begun in {results}")
    folder = results / method / name
    while is_held(folder):
        time.sleep(POLL)
    with RunLock(folder):
        run_job(results, source, subject, method, settings, batch_size, scorer)


def submit_jobs(
    config: EvaluationConfig, source: Source, settings: Settings, gpu: bool, say: Callable[[str], None]
) -> None:
    """What is not scored yet, each subject and method as a job. Raises UserError if some fail."""
    results, metrics = config.output_dir, settings.metrics
    commands = {
        f"{method}/{subject.name}": job_command(config, subject.name, method)
        for method in source.methods
        for subject in source.subjects
        if not is_scored(results / method / subject.name, metrics)
    }
    cluster = Cluster(config.executor, config.partition, config.at_once, config.hours or HOURS, gpu)
    jobs = results / "jobs"
    failed = run_jobs(cluster, commands, jobs, lambda name: is_scored(results / name, metrics), say)
    if failed:
        raise UserError(
            f"{len(failed)} of {counted(len(commands), 'job')} ended before they were done, e.g. "
            f"{failed[0]}; their logs are in {jobs}; the same command submits them again"
        )


def job_command(config: EvaluationConfig, subject: str, method: str) -> list[str]:
    """The command line of a job: that of the evaluation, with --only in place of --executor."""
    job = f"{subject},{method}"
    alone = replace(config, executor=None, partition=None, gpus=None, hours=None, only=job)
    return [sys.executable, "-m", "scripts.evaluate", config.mode, *as_argv(alone)]


def concept_of(folder: Path, source: Source, subject: Subject, method: str, device: torch.device) -> Path:
    """The trained concept: the one that was given, whose log is copied, or the one that is trained here."""
    concept = folder / "concept"
    if source.concept is not None:
        concept.mkdir(parents=True, exist_ok=True)
        for name in ("log.jsonl", "training_config.json", "concept.json"):
            if (source.concept / name).is_file():
                copyfile(source.concept / name, concept / name)
        return source.concept
    if not is_trained(concept):
        train(subject, method, source.base.path, source.flags(method), concept, device)
    return concept


def draw_missing(
    results: Path,
    shots: list[Shot],
    source: Source,
    concept: Path | None,
    drawing: Drawing,
    batch_size: int,
    device: torch.device,
) -> None:
    """The images that are not there yet, each written as soon as it is drawn."""
    missing = [shot for shot in shots if not (results / shot.image).is_file()]
    if not missing:
        return
    pipeline = load_pipeline(source.base.path, device)
    how, turned = drawing.sampling, None
    rotation, norm = drawing.embedding_adjustment, drawing.embedding_adjustment_norm
    if concept is not None:
        loaded = load_concept(pipeline, concept)
        if rotation is not None:
            classes = dict(zip(loaded.token_ids, loaded.classes, strict=True))
            turned = adjustment(pipeline, classes, loaded.rows_only, rotation, norm)
    about = dict(how)
    if concept is not None and rotation is not None:
        about |= {"embedding_adjustment": rotation, "embedding_adjustment_norm": norm}
    about |= {"base": source.base.name, "concept": concept or ""}
    for shot in missing:
        (results / shot.image).parent.mkdir(parents=True, exist_ok=True)
    jobs = [(shot.prompt, shot.seed, results / shot.image) for shot in missing]
    for _ in draw(pipeline, jobs, about, batch_size=batch_size, adjust=turned, **how):
        pass


def take_in(results: Path, source: Source) -> None:
    """Copies, as PNG, of the images that were made elsewhere: the folder then holds all it rests on."""
    for shot, path in source.images:
        if not (results / shot.image).is_file():
            (results / shot.image).parent.mkdir(parents=True, exist_ok=True)
            save_png(open_image(path), results / shot.image, {"prompt": shot.prompt, "source": path.name})

"""A whole evaluation: checks, then every subject with every method, then the table.

Under `torchrun` the subjects and methods are dealt out to its processes.
"""

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from utils.bases.devices import check_processes, choose_device_dtype
from utils.bases.families import family_of
from utils.bases.registry import as_dict, portable
from utils.common.cluster import check_executor
from utils.common.errors import UserError
from utils.common.files import check_writable_folder, write_json, write_text
from utils.common.images import list_images, open_image
from utils.concepts.embeddings import check_one_vector
from utils.concepts.formats import read_concept
from utils.concepts.names import check_apart
from utils.config.methods import METHODS
from utils.data.world import strangers
from utils.evaluation.config import EvaluationConfig, split
from utils.evaluation.data_sets import DataSet, copy_pictures
from utils.evaluation.folder import PICTURES, SETTINGS_FILE, Drawing, Scores, Settings, check_settings
from utils.evaluation.plan import describe
from utils.evaluation.runs import run_job, run_only, submit_jobs
from utils.evaluation.scoring import Scorer, check_metrics, check_texts, needed_kinds
from utils.evaluation.sources import Source, source_of
from utils.evaluation.table import as_markdown, build_table
from utils.evaluation.training_process import check_flags
from utils.learners.registry import check_has_text_states
from utils.learners.token_rows import check_within_limit
from utils.sampling.images import check_scheduler
from utils.sampling.prompts import classes_of
from utils.sampling.settings import ADJUSTED_NORM, check_rotation, check_steps
from utils.scores.judges import KINDS
from utils.scores.table import CLASS_IMAGES, PAIRS, SCORES, UNRELATED_IMAGES
from utils.training.lock import lock_of_run

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "numpy", "Pillow")
WAIT = timedelta(days=30)  # the main process waits for the slowest


def evaluate(config: EvaluationConfig, data_sets: Mapping[str, DataSet]) -> str | None:
    """Runs it all and returns the table as markdown, None in processes other than the main one, and for
    --dry_run, which prints what there is to do and how long it takes.

    Raises UserError for what no run could use, before any model loads and anything is written, and for a
    folder where another evaluation is at work.
    """
    check_processes()
    if config.executor:
        check_executor(config.executor)
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise UserError("--executor starts its own jobs: give the command without torchrun")
    check_writable_folder(config.output_dir, "output_dir")
    source = source_of(config, data_sets)
    metrics, models = metrics_of(config, source), models_of(config, source)
    say("judges: " + ", ".join(f"{kind} {portable(models[kind])}" for kind in needed_kinds(metrics)))
    check_metrics(metrics, models, config.blip_head)
    for line in filter(None, (KINDS[kind].notice(models[kind]) for kind in needed_kinds(metrics))):
        say(f"sent to another machine: {line}")
    settings = settings_of(config, source, metrics, models)
    check_settings(config.output_dir, settings)
    check_source(source, settings, models)
    if source.trained and (line := strangers_of(source)):
        say(line)
    if config.dry_run:
        for line in describe(source, settings, config.output_dir, own_device(), jobs_of(config)):
            say(line)
        return None
    if config.only is not None:
        scorer = Scorer(settings.metrics, models, config.blip_head, own_device(), source.word_judge)
        run_only(config.output_dir, source, config.only, settings, config.batch_size or 8, scorer)
        return None
    with lock_of_run(config.output_dir):
        return _carry_out(config, source, settings, models)


def _carry_out(
    config: EvaluationConfig, source: Source, settings: Settings, models: dict[str, str]
) -> str | None:
    """What `settings` say and is not done yet, dealt out to the processes; then the table."""
    state = PartialState(cpu=on_cpu(), timeout=WAIT)
    results = config.output_dir
    if state.is_main_process:
        if source.data_set and source.data_set.draw:
            source.data_set.draw(source.subjects)
        copy_pictures(source.subjects)
        write_json(results / SETTINGS_FILE, settings.as_json())
        write_json(results / "subjects.json", [subject.describe() for subject in source.subjects])
    state.wait_for_everyone()

    if config.executor:
        submit_jobs(config, source, settings, not on_cpu(), say)
    else:
        _run_here(config, source, settings, models, state)
    state.wait_for_everyone()
    table = None
    if state.is_main_process:
        table = write_table(results, source, settings)
        if source.data_set and source.data_set.write:
            folder = source.data_set.write(results, source.subjects, source.methods, settings.seeds)
            say(f"the images as the benchmark's own evaluation reads them are in {folder}")
    state.destroy_process_group()
    return table


def _run_here(
    config: EvaluationConfig, source: Source, settings: Settings, models: dict[str, str], state: PartialState
) -> None:
    """This process's share of the subjects and methods."""
    scorer = Scorer(settings.metrics, models, config.blip_head, state.device, source.word_judge)
    jobs = [(subject, method) for method in source.methods for subject in source.subjects]
    mine = list(enumerate(jobs, start=1))[state.process_index :: state.num_processes]
    for number, (subject, method) in mine:
        print(f"[{number}/{len(jobs)}] {subject.name}, {method}", flush=True)
        run_job(config.output_dir, source, subject, method, settings, config.batch_size or 8, scorer)


def strangers_of(source: Source) -> str | None:
    """A line on what the base cannot learn, by the classes and the first image of each individual; of a
    benchmark that draws its own images, by the classes alone."""
    individuals = [each for subject in source.subjects for each in subject.individuals]
    drawn_here = source.data_set is not None and source.data_set.draw is not None
    folders = [] if drawn_here or source.base.world is None else [each.folder for each in individuals]
    images = [open_image(list_images(folder)[0][0]) for folder in folders]
    return strangers(source.base, [each.cls_token for each in individuals], images)


def say(text: str) -> None:
    """Prints in one process only."""
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)


def own_device() -> torch.device:
    """Of a process that has no part in others' work."""
    return choose_device_dtype("cpu" if on_cpu() else None)[0]


def jobs_of(config: EvaluationConfig) -> int | None:
    """Jobs at a time; None where this program does the work itself."""
    return config.at_once if config.executor else None


def on_cpu() -> bool:
    """Whether the environment says to leave the GPU alone."""
    return parse_flag_from_env("ACCELERATE_USE_CPU")


def metrics_of(config: EvaluationConfig, source: Source) -> list[str]:
    """Those of --metrics, else all that there are judges and images for; what has no images is said."""
    shots = [(shot.subject, shot.prompt_index) for shot, _ in source.images]
    lacking = {}
    if len(set(shots)) == len(shots) if shots else len(config.seeds) < 2:
        lacking[PAIRS] = PAIRS
    if source.images and not source.class_images:
        lacking[CLASS_IMAGES] = f"--generated_class, {CLASS_IMAGES}"
    if source.images:
        lacking[UNRELATED_IMAGES] = UNRELATED_IMAGES
    chosen, models = split(config.metrics), models_of(config, source)
    candidates = chosen or [name for name in SCORES if SCORES[name].judge in (None, *models)]
    for name in candidates:
        if SCORES[name].needs in lacking:
            wanted = lacking[SCORES[name].needs]
            if chosen:
                raise UserError(f"--metrics has {name}, which needs {wanted}")
            say(f"left out: {name}, which needs {wanted}")
    return chosen or [name for name in candidates if SCORES[name].needs not in lacking]


def models_of(config: EvaluationConfig, source: Source) -> dict[str, str]:
    """The judges: those of the flags, else of the base's row, which may have none of a kind."""
    models = {kind: getattr(config, kind, None) or source.base.judges.get(kind) for kind in KINDS}
    return {kind: model for kind, model in models.items() if model}


def settings_of(
    config: EvaluationConfig, source: Source, metrics: list[str], models: Mapping[str, str]
) -> Settings:
    """All that the numbers depend on, and the hardware."""
    device, dtype = choose_device_dtype("cpu" if on_cpu() else None)
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else None
    if config.executor == "slurm" and not on_cpu():  # this machine may have no GPU; the jobs' have
        gpu, dtype = gpu or "Slurm", torch.float16
    seeds = sorted({shot.seed for shot, _ in source.images}) or config.seeds
    return Settings(
        dataset=config.dataset,
        source=str(config.data_dir or config.concept or config.generated or PICTURES),
        digest=source.digest,
        base=source.base.name,
        methods=source.methods,
        subjects=[subject.name for subject in source.subjects],
        templates=sorted({template for subject in source.subjects for template in subject.templates}),
        metrics=metrics,
        models={kind: portable(models[kind]) for kind in models} | {"blip_head": config.blip_head},
        seeds=seeds,
        versions={library: version(library) for library in LIBRARIES},
        hardware={"device": gpu or platform.machine(), "cpus": os.cpu_count()},
        drawing=None if source.images else drawing_of(config, source, str(dtype)),
    )


def drawing_of(config: EvaluationConfig, source: Source, dtype: str) -> Drawing:
    """How the images are drawn: as the flags say, else as suits the base."""
    sampling = as_dict(source.base.sampling)
    given = {name: getattr(config, name) for name in sampling}
    rotation, norm = config.embedding_adjustment, config.embedding_adjustment_norm
    return Drawing(
        train_flags={method: source.flags(method) for method in source.trained},
        num_class_images=config.num_class_images or 10,
        dtype=dtype,
        embedding_adjustment=rotation,
        embedding_adjustment_norm=ADJUSTED_NORM if rotation is not None and norm is None else norm,
        **(sampling | {name: value for name, value in given.items() if value is not None}),
    )


def check_source(source: Source, settings: Settings, models: Mapping[str, str]) -> None:
    """Raises UserError for a base model, training flags or prompts that the run could not use."""
    texts = sorted({text for subject in source.subjects for text in subject.class_prompts})
    check_texts(settings.metrics, models, texts)
    if source.images:
        return
    base, drawing = source.base.path, settings.drawing
    check_scheduler(drawing.scheduler, drawing.eta)
    family = family_of(base)
    check_steps(drawing.num_inference_steps, base)
    if source.concept is not None and drawing.embedding_adjustment is not None:
        concept = read_concept(source.concept)
        check_rotation(drawing.embedding_adjustment, classes=classes_of([concept]))
        check_one_vector([concept], "--embedding_adjustment")
        check_has_text_states(concept.parts, source.concept)
    for method in source.trained:
        if drawing.embedding_adjustment is not None:
            learners = [name for stage in METHODS[method].stages for name in stage.trains]
            check_has_text_states(learners, f"--method {method}")
        check_flags(source.subjects[0], method, base, source.train_flags)
    for subject in source.subjects:
        tokens = [individual.token for individual in subject.individuals]
        check_apart(tokens, subject.prompts)
        for tokenizer in family.tokenizers(base):
            tokenizer.add_tokens(tokens)
            for prompt in subject.prompts:
                check_within_limit(tokenizer, prompt, [token for token in tokens if token in prompt])


def write_table(results: Path, source: Source, settings: Settings) -> str:
    """Writes table.json and table.md, and returns the latter."""
    scores = {
        (subject.name, method): Scores.read(results / method / subject.name)
        for subject in source.subjects
        for method in source.methods
    }
    names = [subject.name for subject in source.subjects]
    categories: dict[str, list[str]] = {}
    for subject in source.subjects:
        if subject.category is not None:
            categories.setdefault(subject.category, []).append(subject.name)
    table = build_table(scores, names, source.methods, settings.seeds, settings.versions, categories)
    write_json(results / "table.json", asdict(table))
    write_text(results / "table.md", as_markdown(table))
    return as_markdown(table)

"""One subject and one method of an evaluation: trained, drawn, scored; nothing of it is done twice."""

from pathlib import Path
from shutil import copyfile

import torch

from utils.bases.families import load_pipeline
from utils.common.images import open_image, save_png
from utils.concepts.load import load_concept
from utils.evaluation.data_sets import Subject
from utils.evaluation.folder import BASE, Drawing, Settings, is_scored
from utils.evaluation.scoring import Scorer, score_subject
from utils.evaluation.shots import Shot, extra_shots, shots_of
from utils.evaluation.sources import Source
from utils.evaluation.training_process import is_trained, train
from utils.sampling.embedding_adjustment import adjustment
from utils.sampling.images import sample


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
        shots = shots_of(subject, method, settings.seeds)
        extra = extra_shots(subject, method, settings, source.base.world)
        of_class = [[results / shot.image for shot in group] for group in extra.of_class]
        unrelated = tuple([results / s.image for s in of] for of in (extra.unrelated, extra.unrelated_base))
        concept = None if method == BASE else concept_of(folder, source, subject, method, scorer.device)
        how = (settings.drawing, batch_size, scorer.device)
        draw(results, extra.unrelated_base, source, None, *how)
        draw(results, shots + extra.of_method, source, concept, *how)
    score_subject(results, folder, subject, shots, of_class, scorer, unrelated)


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


def draw(
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
    prompts, seeds = [shot.prompt for shot in missing], [shot.seed for shot in missing]
    drawn = sample(pipeline, prompts, seeds, batch_size=batch_size, adjust=turned, **how)
    for shot, image in zip(missing, drawn, strict=True):
        path = results / shot.image
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"prompt": shot.prompt, "seed": shot.seed} | how
        if concept is not None and rotation is not None:
            about |= {"embedding_adjustment": rotation, "embedding_adjustment_norm": norm}
        save_png(image, path, about | {"base": source.base.name, "concept": concept or ""})


def take_in(results: Path, source: Source) -> None:
    """Copies, as PNG, of the images that were made elsewhere: the folder then holds all it rests on."""
    for shot, path in source.images:
        if not (results / shot.image).is_file():
            (results / shot.image).parent.mkdir(parents=True, exist_ok=True)
            save_png(open_image(path), results / shot.image, {"prompt": shot.prompt, "source": path.name})

"""Scores of one subject's pictures, streamed through the models in batches and recorded as they come.

N generated pictures, M real ones of an individual, P CLIP's width, D DINO's width.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from utils.blip2t import BLIP2T, check_blip, check_prompts
from utils.errors import UserError
from utils.evaluation.data_sets import Subject
from utils.evaluation.shots import Shot
from utils.files import append_records, read_records, write_json
from utils.images import list_images, open_image
from utils.scores.encoders import batches
from utils.scores.similarity import (
    ClipEncoder,
    DinoEncoder,
    check_clip,
    check_clip_prompts,
    check_dino,
    clip_t,
    div,
    mean_similarity,
    pres,
)

METRICS = {
    "clip_t": "clip",
    "clip_i": "clip",
    "dino_i": "dino",
    "blip_t": "blip",
    "pres": "dino",
    "div": "dino",
}
DIGITS = 6  # of a recorded score: float32 has no more


class Judge(Protocol):
    """Tells which words of their texts pictures obey, in a world where that can be told."""

    name: str  # of the model that reads the pictures

    def __call__(
        self, pictures: Sequence[Image.Image], texts: Sequence[str]
    ) -> list[dict[str, bool]]: ...  # {"place": True, …, "all": False} for each


def check_metrics(metrics: Sequence[str], models: dict[str, str], blip_head: str) -> None:
    """Raises UserError for an unknown metric, or a model, needed by one, that is not of the needed kind."""
    for name in metrics:
        if name not in METRICS:
            raise UserError(f"unknown metric '{name}'; choose of {', '.join(METRICS)}")
    needed = {METRICS[name] for name in metrics}
    if "clip" in needed:
        check_clip(models["clip"])
    if "dino" in needed:
        check_dino(models["dino"])
    if "blip" in needed:
        check_blip(models["blip"], blip_head)


def check_texts(metrics: Sequence[str], models: dict[str, str], texts: Sequence[str]) -> None:
    """Raises UserError for a text that is longer than a model of the metrics reads; loads tokenizers only."""
    needed = {METRICS[name] for name in metrics}
    if "clip" in needed:
        check_clip_prompts(models["clip"], texts)
    if "blip" in needed:
        check_prompts(models["blip"], texts)


class Scorer:
    """The models of the metrics, each loaded when first used; the real pictures' features, made once.

    models: {"clip": folder or Hub id, "dino": …, "blip": …}. judge: None where prompts cannot be read off.
    """

    def __init__(
        self,
        metrics: Sequence[str],
        models: dict[str, str],
        blip_head: str = "itc",
        device: str | torch.device | None = None,
        judge: Judge | None = None,
        batch_size: int = 64,
    ):
        self.metrics, self.models, self.blip_head = tuple(metrics), models, blip_head
        self.device, self.judge, self.batch_size = device, judge, batch_size
        self._real: dict[tuple[str, Path], Tensor] = {}

    @cached_property
    def clip(self) -> ClipEncoder:
        return ClipEncoder(self.models["clip"], self.device)

    @cached_property
    def dino(self) -> DinoEncoder:
        return DinoEncoder(self.models["dino"], self.device)

    @cached_property
    def blip(self) -> BLIP2T:
        return BLIP2T(self.models["blip"], self.device, self.blip_head)

    def uses(self, model: str) -> bool:
        return any(METRICS[name] == model for name in self.metrics)

    def names(self, scores: Iterable[str]) -> dict[str, str]:
        """score -> the model that stands beside it."""
        told = {"clip": lambda: self.clip.model_id, "dino": lambda: self.dino.model_id}
        told["blip"] = lambda: self.blip.name
        return {name: told[METRICS[name]]() if name in METRICS else self.judge.name for name in scores}

    def real(self, model: str, folder: Path) -> Tensor:
        """(M, P or D) features of an individual's own pictures."""
        if (model, folder) not in self._real:
            encoder = self.clip if model == "clip" else self.dino
            self._real[model, folder] = self._features(encoder, list_images(folder)[0])
        return self._real[model, folder]

    def likeness(self, model: str, features: Tensor, subject: Subject) -> Tensor:
        """(N,) mean cosine to the real pictures; of several individuals, each counts the same."""
        folders = [individual.folder for individual in subject.individuals]
        return torch.stack([mean_similarity(features, self.real(model, f)) for f in folders]).mean(0)

    def records(
        self, shots: Sequence[Shot], pictures: Sequence[Image.Image], dino: Tensor | None, subject: Subject
    ) -> list[dict[str, Any]]:
        """The scores of pictures and their shots. dino: (N, D) their features, None where not needed."""
        scores: dict[str, Tensor] = {}
        texts = [shot.text for shot in shots]
        if self.uses("clip"):
            features = self.clip.image_features(pictures)  # (N, P)
            scores["clip_t"] = clip_t(features, self.clip.text_features(texts))
            scores["clip_i"] = self.likeness("clip", features, subject)
        if dino is not None:
            scores["dino_i"] = self.likeness("dino", dino, subject)
        if self.uses("blip"):
            scores["blip_t"] = self.blip.scores(texts, pictures)
        records = [shot.describe() for shot in shots]
        for name in self.metrics:
            if name in scores:
                for record, value in zip(records, scores[name].tolist(), strict=True):
                    record[name] = round(value, DIGITS)
        if self.judge is not None:
            for record, obeyed in zip(records, self.judge(pictures, texts), strict=True):
                record["obeyed"] = obeyed
        return records

    def pres(self, class_pictures: Sequence[Sequence[Path]], subject: Subject) -> float:
        """PRES, its mean over the individuals. class_pictures: paths for each of them."""
        values = [
            pres(self._features(self.dino, paths), self.real("dino", individual.folder))
            for paths, individual in zip(class_pictures, subject.individuals, strict=True)
        ]
        return sum(values) / len(values)

    def _features(self, encoder: ClipEncoder | DinoEncoder, paths: Iterable[Path]) -> Tensor:
        """Opened batch by batch: memory does not grow with their number."""
        return torch.cat(
            [
                encoder.image_features([open_image(p) for p in batch])
                for batch in batches(paths, self.batch_size)
            ]
        )


def score_subject(
    results: Path,
    folder: Path,
    subject: Subject,
    shots: Sequence[Shot],
    class_pictures: Sequence[Sequence[Path]],
    scorer: Scorer,
) -> dict[str, Any]:
    """Scores what `folder`, of a method and subject, holds: a record per picture, then scores.json.

    Pictures with a record are not scored again, but for their DINO features, which DIV needs of all.
    class_pictures: of PRES, for each individual; unused without it.
    """
    records_file = folder / "records.jsonl"
    recorded = {record["image"] for record in read_records(records_file)}
    features = []
    for batch in batches(shots, scorer.batch_size):
        new = [i for i, shot in enumerate(batch) if shot.image not in recorded]
        if not (new or "div" in scorer.metrics):
            continue
        pictures = [open_image(results / shot.image) for shot in batch]
        dino = scorer.dino.image_features(pictures) if scorer.uses("dino") else None  # (B, D)
        if dino is not None:
            features.append(dino)
        if new:
            chosen = [batch[i] for i in new], [pictures[i] for i in new], None if dino is None else dino[new]
            append_records(records_file, scorer.records(*chosen, subject))
    wanted = {shot.image for shot in shots}
    metric = mean_scores([record for record in read_records(records_file) if record["image"] in wanted])
    if "pres" in scorer.metrics:
        metric["pres"] = scorer.pres(class_pictures, subject)
    if "div" in scorer.metrics:
        metric["div"] = div(torch.cat(features), [shot.prompt_index for shot in shots])
    scores = {"metric": metric, "models": scorer.names(metric), "images": len(shots)}
    write_json(folder / "scores.json", scores)
    return scores


def mean_scores(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over the pictures; obeyed_place: over those whose prompt states a place."""
    columns: dict[str, list[float]] = {}
    for record in records:
        flat = {name: record[name] for name in METRICS if name in record}
        flat |= {f"obeyed_{word}": float(hit) for word, hit in record.get("obeyed", {}).items()}
        for name, value in flat.items():
            columns.setdefault(name, []).append(value)
    return {name: sum(column) / len(column) for name, column in columns.items()}

"""Scores of one subject's images, streamed through the models in batches and recorded as they come.

N generated images, M real ones of an individual, D width of a model's features.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from utils.bases.registry import portable
from utils.common.errors import UserError
from utils.common.files import append_records
from utils.common.images import list_images, open_image
from utils.evaluation.data_sets import Subject
from utils.evaluation.folder import Scores, read_image_records
from utils.evaluation.shots import Shot
from utils.scores.encoders import batches
from utils.scores.judges import KINDS
from utils.scores.similarity import mean_similarity
from utils.scores.table import OBEYED, SCORES

OBEYED_WORDS = "obeyed"  # in a record: word -> whether the image obeys it
REFERENCES = 3  # of a subject's own images are shown to a judge that compares
DIGITS = 6  # of a recorded score: float32 has no more


class WordJudge(Protocol):
    """Reads off images which words of their prompts they obey; a benchmark may have one."""

    name: str  # of the model that reads the images

    def __call__(
        self, images: Sequence[Image.Image], texts: Sequence[str]
    ) -> list[dict[str, bool]]: ...  # {"place": True, …, "all": False} for each


def needed_kinds(metrics: Iterable[str]) -> list[str]:
    """The kinds of models that the scores need, in the order of KINDS."""
    needed = {SCORES[name].judge for name in metrics}
    return [kind for kind in KINDS if kind in needed]


def check_metrics(metrics: Sequence[str], models: dict[str, str], blip_head: str) -> None:
    """Raises UserError for a model that one of the scores needs and that is missing or of another kind."""
    for kind in needed_kinds(metrics):
        if kind not in models:
            raise UserError(f"the base has no {kind} judge of its own: give --{kind}")
        KINDS[kind].check(models[kind], blip_head)


def check_texts(metrics: Sequence[str], models: dict[str, str], texts: Sequence[str]) -> None:
    """Raises UserError for a text longer than a model of the scores reads; loads tokenizers only."""
    for kind in needed_kinds(metrics):
        if KINDS[kind].check_texts is not None:
            KINDS[kind].check_texts(models[kind], texts)


class Scorer:
    """The models of the scores, each loaded when first used; the real images' features, made once.

    models: {"clip": folder or Hub id, "dino": …, "blip": …}. word_judge: None where no words can be judged.
    """

    def __init__(
        self,
        metrics: Sequence[str],
        models: dict[str, str],
        blip_head: str = "itc",
        device: str | torch.device | None = None,
        word_judge: WordJudge | None = None,
        batch_size: int = 64,
    ):
        self.metrics, self.models, self.blip_head = tuple(metrics), models, blip_head
        self.device, self.word_judge, self.batch_size = device, word_judge, batch_size
        self._loaded: dict[str, Any] = {}
        self._real: dict[tuple[str, Path], Tensor] = {}

    def model(self, kind: str) -> Any:
        """The model of this kind."""
        if kind not in self._loaded:
            self._loaded[kind] = KINDS[kind].load(self.models[kind], self.device, self.blip_head)
        return self._loaded[kind]

    @property
    def per_image(self) -> tuple[str, ...]:
        """What a record holds of each image: the scores that have a value of each, and the words obeyed."""
        names = tuple(name for name in self.metrics if SCORES[name].of_images is not None)
        return names if self.word_judge is None else (*names, OBEYED_WORDS)

    def names(self, scores: Iterable[str]) -> dict[str, str]:
        """score -> the model behind it; without the scores that need none."""
        names = {}
        for score in scores:
            if score not in SCORES:
                names[score] = self.word_judge.name
            elif kind := SCORES[score].judge:
                names[score] = getattr(self.model(kind), "name", None) or self.model(kind).model_id
        return {score: portable(name) for score, name in names.items()}

    def real(self, kind: str, folder: Path) -> Tensor:
        """(M, D) features of an individual's own images."""
        if (kind, folder) not in self._real:
            self._real[kind, folder] = self.encode(kind, list_images(folder)[0])
        return self._real[kind, folder]

    def likeness(self, kind: str, features: Tensor, subject: Subject) -> Tensor:
        """(N,) mean cosine to the real images; of several individuals, each counts the same."""
        folders = [individual.folder for individual in subject.individuals]
        return torch.stack([mean_similarity(features, self.real(kind, f)) for f in folders]).mean(0)

    def encode(self, kind: str, files: Iterable[Path]) -> Tensor:
        """(N, D). Opened batch by batch: memory does not grow with the number of files."""
        encode = self.model(kind).image_features
        return torch.cat([encode([open_image(f) for f in b]) for b in batches(files, self.batch_size)])


class SubjectImages:
    """One subject's generated images, all or a batch of them, as the rows of SCORES ask for them.

    class_files: images of the class alone, for each individual. unrelated_files: of unrelated prompts, the
    method's and the base's. known: features made already, shared between the whole and its batches.
    """

    def __init__(
        self,
        scorer: Scorer,
        subject: Subject,
        shots: Sequence[Shot],
        results: Path,
        class_files: Sequence[Sequence[Path]] = (),
        known: dict[tuple[str, Path], Tensor] | None = None,
        unrelated_files: tuple[Sequence[Path], Sequence[Path]] = ((), ()),
    ):
        self.scorer, self.subject, self.shots, self.results = scorer, subject, list(shots), results
        self.class_files, self.unrelated_files = class_files, unrelated_files
        self.files = [results / shot.image for shot in shots]
        self.paths, self.texts = [shot.image for shot in shots], [shot.text for shot in shots]
        self.groups = [shot.prompt_index for shot in shots]
        self._known = {} if known is None else known

    def part(self, shots: Sequence[Shot]) -> "SubjectImages":
        """Some of the images; what is computed for them is kept for all."""
        return SubjectImages(self.scorer, self.subject, shots, self.results, self.class_files, self._known)

    def model(self, kind: str) -> Any:
        return self.scorer.model(kind)

    @cached_property
    def opened(self) -> list[Image.Image]:
        """The images; to be asked of a batch."""
        assert len(self.files) <= self.scorer.batch_size, len(self.files)
        return [open_image(file) for file in self.files]

    @cached_property
    def references(self) -> list[Image.Image]:
        """The first REFERENCES of the subject's own images; of several individuals, as many of each."""
        folders = [individual.folder for individual in self.subject.individuals]
        of_each = max(1, REFERENCES // len(folders))
        return [open_image(file) for folder in folders for file in list_images(folder)[0][:of_each]]

    @property
    def folder(self) -> Path:
        return self.files[0].parents[1]

    def features(self, kind: str) -> Tensor:
        """(N, D) unit vectors of the images by the model of this kind."""
        missing = [i for i, file in enumerate(self.files) if (kind, file) not in self._known]
        for batch in batches(missing, self.scorer.batch_size):
            if len(self.files) <= self.scorer.batch_size:
                images = [self.opened[i] for i in batch]
            else:
                images = [open_image(self.files[i]) for i in batch]
            made = self.model(kind).image_features(images)
            self._known |= {(kind, self.files[i]): row for i, row in zip(batch, made, strict=True)}
        return torch.stack([self._known[kind, file] for file in self.files])

    def likeness(self, kind: str) -> Tensor:
        """(N,) mean cosine with the real images."""
        return self.scorer.likeness(kind, self.features(kind), self.subject)

    def real_features(self, kind: str) -> list[Tensor]:
        """(M, D) for each individual."""
        return [self.scorer.real(kind, individual.folder) for individual in self.subject.individuals]

    def class_features(self, kind: str) -> list[Tensor]:
        """(number of class images, D) for each individual."""
        return [self.scorer.encode(kind, files) for files in self.class_files]

    def unrelated_features(self, kind: str) -> tuple[Tensor, Tensor]:
        """(N, D) of the method's images of unrelated prompts, and (N, D) of the base's."""
        tuned, base = (self.scorer.encode(kind, files) for files in self.unrelated_files)
        return tuned, base

    def records(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """The shots of a batch with these scores of each image, of `Scorer.per_image`."""
        records = [shot.describe() for shot in self.shots]
        for name in names:
            if name == OBEYED_WORDS:
                values = self.scorer.word_judge(self.opened, self.texts)
            else:
                values = [round(value, DIGITS) for value in SCORES[name].of_images(self).tolist()]
            for record, value in zip(records, values, strict=True):
                record[name] = value
        return records


def score_subject(
    results: Path,
    folder: Path,
    subject: Subject,
    shots: Sequence[Shot],
    class_files: Sequence[Sequence[Path]],
    scorer: Scorer,
    unrelated_files: tuple[Sequence[Path], Sequence[Path]] = ((), ()),
) -> Scores:
    """Scores what `folder`, of a method and subject, holds: records of each image, then scores.json.

    What a record holds already is not scored again, but for features that a score of all images needs: a
    judge that is added later reads all images and leaves the other scores as they are.
    class_files: of PRES, for each individual. unrelated_files: of Drift, the method's and the base's. Each is
    unused without its score.
    """
    records_file = folder / "records.jsonl"
    images = SubjectImages(scorer, subject, shots, results, class_files, unrelated_files=unrelated_files)
    known = {record["image"]: record for record in read_image_records(records_file)}
    lacking: dict[tuple[str, ...], list[Shot]] = {}
    for shot in shots:
        names = tuple(name for name in scorer.per_image if name not in known.get(shot.image, {}))
        if names or shot.image not in known:
            lacking.setdefault(names, []).append(shot)
    for names, its in lacking.items():
        for batch in batches(its, scorer.batch_size):
            append_records(records_file, images.part(batch).records(names))
    wanted = {shot.image for shot in shots}
    metric = mean_scores([each for each in read_image_records(records_file) if each["image"] in wanted])
    for name in scorer.metrics:
        if SCORES[name].of_subject is not None:
            metric[name] = SCORES[name].of_subject(images)
    scores = Scores(metric, scorer.names(metric), len(shots))
    scores.write(folder)
    return scores


def mean_scores(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over the images; obeyed_place: over those whose prompt states a place."""
    columns: dict[str, list[float]] = {}
    for record in records:
        flat = {name: record[name] for name in SCORES if name in record}
        flat |= {f"{OBEYED}{word}": float(hit) for word, hit in record.get(OBEYED_WORDS, {}).items()}
        for name, value in flat.items():
            columns.setdefault(name, []).append(value)
    return {name: sum(column) / len(column) for name, column in columns.items()}

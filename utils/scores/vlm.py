"""A judge that sees and reads: a vision-language model grades images from 0 to 4, by rubric.txt.

Two questions, as in DreamBench++ (Peng et al. 2024, arXiv 2406.16855): is the subject kept, and does the
image show its prompt? Each is asked RUNS times. Every answer is kept as it came in `answers.jsonl` next to
the images, under a digest of all that was asked, and what has been graded there is not asked again.
"""

import hashlib
import io
import json
import threading
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from utils.common.errors import UserError
from utils.common.files import append_records, read_records
from utils.scores.endpoint import SENT, Endpoint, is_address, read_address

if TYPE_CHECKING:
    from utils.scores.table import ScoredImages

QUESTIONS = ("concept", "prompt")
RUNS = 3
TRIES = 5  # of one question, until an answer holds a grade
BEST = 4
SIDE = 512  # longest side in pixels of an image that is shown to the model
ANSWERS = "answers.jsonl"
RUBRIC = Path(__file__).with_name("rubric.txt")

Part = str | Image.Image  # of what the model is told, in order


class Speaker(Protocol):
    """A model that answers. notice: its name and what is sent to it; parallel: questions it takes at once."""

    name: str
    notice: str
    parallel: int

    def answer(self, parts: Sequence[Part], seed: int) -> str: ...

    def stop(self) -> None: ...  # for good


@dataclass(frozen=True)
class Question:
    """What to ask of one image. image: its path within the results; key: a digest of all that is asked."""

    kind: str
    image: str
    parts: tuple[Part, ...]
    key: str


class Grader:
    """Grades images. model: a folder or Hub id of an image-text-to-text model, or `<base URL>#<model>`."""

    def __init__(self, model: str, device: str | torch.device | None = None):
        self.speaker: Speaker = speaker_of(model, device)
        self.name = self.speaker.notice
        self.rubric = read_rubric()
        self._writing = threading.Lock()

    def grades(self, images: "ScoredImages", kind: str) -> Tensor:
        """(N,) the mean grade of each image over the runs, in [0, 4]. kind: one of QUESTIONS.

        Raises UserError for an image that gets no grade in TRIES tries, and as the endpoint does.
        """
        file = images.folder / ANSWERS
        known: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for record in read_records(file):
            known[str(record.get("key"))].append(record)
        asked = [question for each in self._questions(images, kind) for question in [each] * RUNS]
        runs = list(range(RUNS)) * len(images.texts)

        def grade(question: Question, run: int) -> float:
            earlier = [record for record in known[question.key] if record["run"] == run]
            found = next((record["grade"] for record in earlier if record["grade"] is not None), None)
            return self._ask(file, question, run, len(earlier)) if found is None else found

        with ThreadPoolExecutor(self.speaker.parallel) as pool:
            try:
                grades = list(pool.map(grade, asked, runs))
            except BaseException:  # a signal, too: what is not asked yet is not asked any more
                self.speaker.stop()
                raise
        return torch.tensor(grades, dtype=torch.float32).view(-1, RUNS).mean(dim=1)

    def _questions(self, images: "ScoredImages", kind: str) -> list[Question]:
        """One for each image."""
        shown, questions = [shrink(each) for each in images.references], []
        for image, text, path in zip(images.opened, images.texts, images.paths, strict=True):
            if kind == "concept":
                parts = (self.rubric[kind], "The subject:", *shown, "The generated image:", shrink(image))
            else:
                parts = (self.rubric[kind], shrink(image), f"The prompt: {json.dumps(text)}")
            questions.append(Question(kind, path, parts, digest(self.speaker.name, parts)))
        return questions

    def _ask(self, file: Path, question: Question, run: int, earlier: int) -> int:
        """The grade of a run. earlier: tries that came to nothing, whose seeds are not used again."""
        for attempt in range(earlier, earlier + TRIES):
            answer = self.speaker.answer(question.parts, seed=run + RUNS * attempt)
            grade = read_grade(answer)
            about = {"key": question.key, "question": question.kind, "image": question.image, "run": run}
            with self._writing:
                append_records(file, [about | {"grade": grade, "answer": answer}])
            if grade is not None:
                return grade
        raise UserError(
            f"--vlm {self.speaker.name} gave no grade for {question.image} in {TRIES} tries; its answers are "
            f"in {file}; give another model, or the same command to go on from here"
        )


def agreement(images: "ScoredImages") -> float:
    """Share of the pairs of runs that gave an image the same grade, over both questions; in [0, 1]."""
    grades = {
        (record["image"], record["question"], record["run"]): record["grade"]
        for record in read_records(images.folder / ANSWERS)
        if record["grade"] is not None
    }
    same = [
        grades[image, question, a] == grades[image, question, b]
        for image in images.paths
        for question in QUESTIONS
        for a, b in combinations(range(RUNS), 2)
        if (image, question, a) in grades and (image, question, b) in grades
    ]
    if not same:
        raise UserError("--metrics has vlm_agreement, which needs vlm_concept or vlm_prompt: add one")
    return sum(same) / len(same)


def read_rubric() -> dict[str, str]:
    """question -> what the model is told before the images."""
    sections = RUBRIC.read_text(encoding="utf-8").split("[")[1:]
    return {name: text.strip() for name, _, text in (section.partition("]") for section in sections)}


def read_grade(answer: str) -> int | None:
    """The grade of an answer that is one JSON object, which may stand in a code fence and behind </think>.

    None for anything else, so that a grade which is only quoted, from a prompt or an image, does not count.
    """
    text = answer.rpartition("</think>")[2].strip()
    if text.startswith("```") and text.endswith("```"):
        text = text.removeprefix("```json").strip("`")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    grade = found.get("grade") if isinstance(found, dict) else None
    return grade if type(grade) is int and 0 <= grade <= BEST else None


def shrink(image: Image.Image) -> Image.Image:
    """The image in RGB, its longest side at most SIDE."""
    image = image.convert("RGB")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return image


def as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def digest(name: str, parts: Sequence[Part]) -> str:
    """Of the model's name, texts and pixels."""
    found = hashlib.sha256(name.encode())
    for part in parts:
        content = part.encode() if isinstance(part, str) else part.tobytes() + repr(part.size).encode()
        found.update(hashlib.sha256(content).digest())
    return found.hexdigest()


def speaker_of(model: str, device: str | torch.device | None) -> Speaker:
    if is_address(model):
        return Endpoint(model, as_png)
    from utils.scores.local_vlm import LocalModel

    return LocalModel(model, device)


def notice(model: str) -> str | None:
    """What leaves this machine and where to; None for a local model."""
    if not is_address(model):
        return None
    url, name = read_address(model)
    return f"{name} at {url}, {SENT}"


def check_vlm(model: str) -> None:
    """Raises UserError for an address that is none, or a model of another kind; sends nothing."""
    if is_address(model):
        read_address(model)
        return
    from utils.scores.local_vlm import check_local

    check_local(model)

"""Parts of the page as HTML, from templates that escape what they are given."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from utils.app.drawing import Request
from utils.app.form import in_words_of_the_page
from utils.app.jobs import Job
from utils.app.progress import curves, in_words
from utils.app.trainer import FAILED, Status
from utils.app.uploads import Preview
from utils.bases.registry import REPOSITORY
from utils.common.errors import UserError
from utils.common.files import shown
from utils.report.samples import SMALL, data_uri, evenly

SAMPLE_SETS = 4  # shown of a training
NOTHING_YET = "Nothing is trained yet: add images and a class word, then press Train."
NO_IMAGES = "Images appear here, a row for each prompt."
SIDE = 384  # pixels that larger images are shown with
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def message(text: str) -> str:
    """A mistake, announced to screen readers; nothing for no text."""
    return TEMPLATES.get_template("message.html").render(text=text)


def empty(text: str) -> str:
    """What stands where there is nothing yet."""
    return TEMPLATES.get_template("empty.html").render(text=text)


def notes(lines: Sequence[str]) -> str:
    return TEMPLATES.get_template("notes.html").render(lines=lines)


def thumbnails(preview: Preview) -> str:
    return TEMPLATES.get_template("thumbnails.html").render(preview=preview)


def training(job: Job | None, status: Status | None, damaged: Sequence[str] = ()) -> str:
    """State, bar, charts and samples of a job; one line when there is none. damaged: lines on other jobs.

    Of a job with a damaged log or image that is said, and the rest is shown.
    """
    left_out = notes([f"left out: {line}" for line in damaged])
    if job is None or status is None:
        return empty(NOTHING_YET) + left_out
    try:
        log, sets = job.log(), job.samples()
        chosen = [sets[i] for i in evenly(SAMPLE_SETS, len(sets))]
        samples = [(step, [_image(path) for path in paths]) for step, paths in chosen]
    except UserError as error:
        return message(str(error)) + left_out
    command = f"python train_classdiffusion.py {' '.join(map(_quoted, job.flags))}"
    return (
        TEMPLATES.get_template("training.html").render(
            job=job,
            status=status,
            failed=status.state == FAILED,
            sentence=in_words(job, status),
            charts=curves(log, job.steps),
            samples=samples,
            prompt=_flag(job, "validation_prompt"),
            command=command,
        )
        + left_out
    )


def grid(request: Request, files: Sequence[Path]) -> str:
    """A row of images for each prompt; places stand open for those that are not drawn yet."""
    total = len(request.prompts) * len(request.seeds)
    shots = iter([*map(_image, files), *[None] * (total - len(files))])
    rows = [(prompt, [(seed, next(shots)) for seed in request.seeds]) for prompt in request.prompts]
    folder = shown(request.folder) if len(files) == total else ""
    return TEMPLATES.get_template("grid.html").render(rows=rows, done=len(files), total=total, folder=folder)


def downloads(offers: Mapping[str, str | None]) -> str:
    """Why a layout is not offered; one line where nothing is trained."""
    if not offers:
        return empty("A trained concept can be downloaded here.")
    return notes([in_words_of_the_page(reason) for reason in offers.values() if reason])


def _image(path: Path) -> tuple[str, bool]:
    """(data URI, whether it is small and to be enlarged pixel by pixel)."""
    uri, size = data_uri(path, SIDE)
    return uri, max(size) <= SMALL


def _flag(job: Job, name: str) -> str:
    values = [flag.partition("=")[2] for flag in job.flags if flag.startswith(f"--{name}=")]
    return values[-1] if values else ""


def _quoted(flag: str) -> str:
    """For a shell, paths of this repository as seen from its root."""
    from shlex import quote

    return quote(flag.replace(f"{REPOSITORY}/", ""))

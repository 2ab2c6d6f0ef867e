"""What the page's events do; a mistake comes back as a message, anything else is raised."""

from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr

from utils.app import views
from utils.app.downloads import LAYOUTS, offers, pack
from utils.app.drawing import Painter, request_of
from utils.app.form import Form, default_prompts, default_steps, in_words_of_the_page, plan, unknown_to
from utils.app.jobs import Job, list_jobs, read_jobs
from utils.app.trainer import FAILED, STOPPED, TRAINING, Trainer
from utils.app.uploads import preview
from utils.bases.registry import REPOSITORY
from utils.common.errors import UserError
from utils.common.images import list_images
from utils.config.methods import METHODS

EXAMPLE, EXAMPLE_CLASS = REPOSITORY / "data" / "dog", "dog"


def answered(handler: Callable[..., Any]) -> Callable[..., Any]:
    """The handler's answer and an empty message; for a mistake, nothing changes but the message."""

    @wraps(handler)
    def answer(*given: Any) -> Any:
        try:
            return handler(*given), views.message("")
        except UserError as error:
            return gr.skip(), views.message(in_words_of_the_page(str(error)))

    return answer


class Handlers:
    """One trainer, one painter, for all sessions."""

    def __init__(self, trainer: Trainer, downloads: Path):
        self.trainer, self.downloads, self.painter = trainer, downloads, Painter()
        self.train = answered(self._train)

    def look(self, uploads: list[str] | None, base: str) -> str:
        """Thumbnails of the uploads and what the base cannot learn of them, or what is wrong with them."""
        if not uploads:
            return ""
        try:
            return views.thumbnails(preview(uploads, base))
        except UserError as error:
            return views.message(in_words_of_the_page(str(error)))

    def example(self) -> tuple[list[str], str]:
        return [str(path) for path in list_images(EXAMPLE)[0]], EXAMPLE_CLASS

    def steps(self, base: str, method: str) -> Any:
        """Unchanged for a base that is none, of which the plan says so."""
        try:
            return default_steps(base, method)
        except UserError:
            return gr.skip()

    def plan(self, cls: str, base: str, method: str, steps: int | None, token: str) -> str:
        """What trains on what; before there is a class word, of any."""
        try:
            lines = plan(Form(cls=cls or "thing", base=base, method=method, steps=steps, token=token))
            warning = unknown_to(base, [cls]) if cls else None
            return views.message(warning or "") + views.notes([*lines, METHODS[method].source])
        except UserError as error:
            return views.message(in_words_of_the_page(str(error)))

    def _train(self, uploads: list[str] | None, *fields: Any) -> Any:
        given = dict(zip(Form.__dataclass_fields__, fields, strict=True))  # None: an empty field
        form = Form(**{"cls": ""} | {name: value for name, value in given.items() if value is not None})
        job = self.trainer.begin(form, uploads or [])
        return gr.update(choices=self._choices(), value=job.name)

    def stop(self) -> str:
        return self._message(self.trainer.stop)

    def resume(self, name: str | None) -> str:
        return self._message(lambda: self.trainer.resume(self._job(name)))

    def prompts(self, name: str | None) -> str:
        """The usual prompts of a concept that was just chosen."""
        return "\n".join(default_prompts(self._job(name).form.subject)) if name else ""

    def refresh(self, name: str | None, seen: str) -> Any:
        """Everything that depends on the chosen job's state, if it has changed since `seen`."""
        jobs, damaged = read_jobs(self.trainer.folder)
        job = next((job for job in jobs if job.name == name), jobs[0] if jobs else None)
        choices = self._choices()
        status = self.trainer.status(job) if job else None
        now = repr((choices, damaged, status, len(job.samples()) if job else 0))
        if now == seen:
            return gr.skip()
        state = status.state if status else ""
        can = offers(job) if job else {}
        return (
            gr.update(choices=choices, value=job.name if job else None, visible=bool(jobs)),
            views.training(job, status, damaged),
            gr.update(visible=state == TRAINING),
            gr.update(visible=state in (STOPPED, FAILED)),
            gr.update(interactive=bool(can)),
            views.downloads(can),
            *[gr.update(visible=each in can and can[each] is None) for each in LAYOUTS],
            now,
        )

    def draw(self, name: str | None, text: str, count: int, seed: int) -> Iterator[tuple[Any, str, Any]]:
        """The grid, again after each image; notes or a message; the Stop button while it draws."""
        show, hide = gr.update(visible=True), gr.update(visible=False)
        try:
            request = request_of(self._job(name), text, int(count), seed)
            note = views.notes(request.notes)
            files: list[Path] = []
            yield views.grid(request, files), note, show
            for file in self.painter.draw(request):
                files.append(file)
                yield views.grid(request, files), note, show
            yield gr.skip(), note, hide
        except UserError as error:
            yield gr.skip(), views.message(in_words_of_the_page(str(error))), hide

    def take(self, layout: str) -> Callable[[str | None], Any]:
        """The handler of a download's button."""

        def handler(name: str | None) -> Any:
            file = pack(self._job(name), layout, self.downloads)
            return gr.update(value=str(file), visible=True)

        return answered(handler)

    def _job(self, name: str | None) -> Job:
        for job in list_jobs(self.trainer.folder):
            if job.name == name:
                return job
        raise UserError("no concept: train one first")

    def _choices(self) -> list[tuple[str, str]]:
        """(what the list shows, its job), the newest first."""
        return [
            (f"{job.name} · {self.trainer.status(job).state}", job.name)
            for job in list_jobs(self.trainer.folder)
        ]

    def _message(self, act: Callable[[], Any]) -> str:
        try:
            act()
        except UserError as error:
            return views.message(in_words_of_the_page(str(error)))
        return views.message("")

"""results/report.html: one self-contained page that shows an evaluation, its numbers and its images."""

from collections.abc import Iterator
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from utils.bases.pretrained import readable
from utils.common.files import write_atomically
from utils.config.methods import METHODS
from utils.evaluation.folder import BASE
from utils.report import words
from utils.report.curves import loss_charts, trade_off
from utils.report.folder import Results, read_results
from utils.report.prompts import clip_t_means, ordered, prompt_scores, words_overall
from utils.report.samples import OPEN_SUBJECTS, SMALL, data_uri, make_plan, native_side, sample_subjects
from utils.scores.table import score_row

NAME = "report.html"
FOLDER = Path(__file__).parent
SHOWN_ELSEWHERE = frozenset({"subjects", "templates", "versions"})  # settings
SECTIONS = ("scores", "differences", "samples", "training", "prompts", "subjects", "setup")


def write_report(results: Path) -> Path:
    """Writes results/report.html from the folder's files, in one piece or not at all, and returns its path.

    Images pass through one at a time, so memory does not grow with their number.
    Raises UserError if `results` is not the folder of a finished run, or holds a file that cannot be read.
    """
    read, path = read_results(results), results / NAME

    def write(partial: Path) -> None:
        with partial.open("w", encoding="utf-8", errors="xmlcharrefreplace") as file:
            file.writelines(page(read))

    with readable("results folder", results):
        write_atomically(path, write)
    return path


def page(results: Results) -> Iterator[str]:
    """The whole document in pieces."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        name: getattr(words, name) for name in ("label", "known", "written", "excludes_zero", "counted")
    }
    environment.globals |= {"score_row": score_row, "data_uri": data_uri, "ordered": ordered}
    scores, side = prompt_scores(results), native_side(results)
    plan = None if side is None else make_plan(results, side)
    found = [(pair, words.certain(results, pair)) for pair in results.table.get("paired", [])]
    per_subject: dict[str, list[dict]] = {}
    for row in results.table.get("per_subject", []):
        per_subject.setdefault(row["subject"], []).append(row)
    yield from environment.get_template("page.html").generate(
        results=results,
        BASE=BASE,
        SMALL=SMALL,
        sections=SECTIONS,
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        title=words.title_of(results),
        summary=words.summary(results),
        confidence=f"{100 * results.table.get('confidence', 0.95):g} %",
        interval=results.table.get("interval", "bootstrap"),  # as earlier versions made them
        intervals=words.has_intervals(results.table["rows"]),
        paired_intervals=words.has_intervals(results.table.get("paired", [])),
        percent=any(score_row(name).percent for name in results.metrics),
        winners={name: words.best(results, name) for name in results.metrics},
        trade_off=trade_off(results),
        findings=[(pair, ways) for pair, ways in found if ways is not None],
        plan=plan,
        native_side=side,
        most_prompts=max(len(subject["prompts"]) for subject in results.subjects),
        OPEN_SUBJECTS=OPEN_SUBJECTS,
        samples=plan and sample_subjects(results, plan),
        losses=list(loss_charts(results)),
        prompt_scores=scores,
        words_overall=words_overall(scores),
        clip_t=clip_t_means(scores),
        per_subject=per_subject,
        classes={subject["name"]: subject["class"] for subject in results.subjects},
        setup=setup(results),
    )


def setup(results: Results) -> dict[str, list[tuple[str, str]]]:
    """Methods, judging models, versions, and all other settings of the run: title -> rows."""
    settings = {name: value for name, value in results.settings.items() if name not in SHOWN_ELSEWHERE}
    versions = results.table.get("versions") or results.settings.get("versions") or {}
    blocks = {
        "Methods": [(words.label(name), METHODS[name].source) for name in results.methods if name in METHODS],
        "Judging models": [
            (score_row(n).label, model) for n, model in results.table.get("models", {}).items()
        ],
        "Settings and hardware": list(words.flat(settings)),
        "Versions": list(versions.items()),
    }
    return {title: rows for title, rows in blocks.items() if rows}

"""The sample grids of a report: rows prompts, columns methods, the same seeds, every picture a data URI."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from utils.evaluation.folder import BASE
from utils.images import open_image
from utils.report.folder import Results
from utils.report.markup import Markup, element, join
from utils.report.tables import label, part

PIXELS = 60_000_000  # of all samples together: about 15 MB of HTML
SIDES = (256, 192, 128)  # what large pictures shrink to, the first that lets every prompt be shown
SMALL = 128  # pictures up to this side keep their pixels and are shown enlarged
SEEDS = 2  # pictures per cell at most
OPEN_SUBJECTS, OPEN_PROMPTS = 4, 3


@dataclass(frozen=True)
class Plan:
    """What a report shows of the samples, so that its file stays of moderate size."""

    side: int  # longest side in pixels
    seeds: int  # per prompt and method
    prompts: int  # per subject


def make_plan(results: Results, native_side: int, budget: int = PIXELS) -> Plan:
    """The largest pictures, then the most seeds, then the most prompts that `budget` pixels hold."""
    counts = [len(subject["prompts"]) for subject in results.subjects]
    cells = sum(counts) * len(results.methods)
    sides = [min(side, native_side) for side in SIDES]
    side = next((side for side in sides if cells * side**2 <= budget), sides[-1])
    seeds = max(1, min(SEEDS, len(results.seeds), budget // max(1, cells * side**2)))
    prompts = max(counts)
    while prompts > 1 and sum(min(n, prompts) for n in counts) * len(results.methods) * side**2 > budget:
        prompts -= 1
    return Plan(side, seeds, prompts)


def data_uri(path: Path, side: int) -> tuple[str, tuple[int, int]]:
    """The picture as a JPEG data URI, no side longer than `side`, and its (width, height)."""
    image = open_image(path)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    small = max(image.size) <= SMALL
    # Few pixels that are shown enlarged need their colours at full resolution.
    settings = {"quality": 90, "subsampling": 0} if small else {"quality": 82}
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", optimize=True, **settings)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), image.size


def picture(path: Path, side: int, alt: str) -> Markup:
    """An <img> with the picture inside."""
    source, (width, height) = data_uri(path, side)
    look = "pixels" if max(width, height) <= SMALL else None
    return element("img", src=source, alt=alt, width=width, height=height, class_=look)


def evenly(count: int, of: int) -> list[int]:
    """`count` indices spread over range(of), the first and the last among them."""
    count = min(count, of)
    return [round(i * (of - 1) / max(1, count - 1)) for i in range(count)]


def opened(subjects: list[dict[str, Any]]) -> list[str]:
    """The subjects that stand open: the first of each class, then the others, in order."""
    first = {subject["class"]: subject["name"] for subject in reversed(subjects)}
    names = [subject["name"] for subject in subjects if first[subject["class"]] == subject["name"]]
    names += [subject["name"] for subject in subjects if subject["name"] not in names]
    return names[:OPEN_SUBJECTS]


def native_side(results: Results) -> int | None:
    """The longest side of the first sample that is there; None if there is none."""
    for subject in results.subjects:
        for method in results.methods:
            for record in results.records(method, subject["name"]):
                path = results.folder / record["image"]
                if path.is_file():
                    with Image.open(path) as image:
                        return max(image.size)
    return None


def sample_grids(results: Results) -> Iterator[Markup]:
    """The samples of every subject, one row at a time, so that memory does not grow with them."""
    side = native_side(results)
    if side is None:
        yield element("p", "The pictures are not in the results folder, so no samples are shown.")
        return
    plan = make_plan(results, side)
    names = opened(results.subjects)
    order = {subject["name"]: subject for subject in results.subjects}
    rest = [name for name in order if name not in names]
    yield _note(results, plan, side, len(names))
    for name in names + rest:
        subject = order[name]
        title = join(element("span", name, class_="subject-name"), f" {subject['class']}")
        if name in names:
            yield join(Markup('<section class="subject">'), element("h3", title))
            yield from _subject(results, subject, plan)
            yield Markup("</section>")
        else:
            yield join(Markup('<details class="subject">'), element("summary", title))
            yield from _subject(results, subject, plan)
            yield Markup("</details>")


def _note(results: Results, plan: Plan, side: int, shown: int) -> Markup:
    """What the grids show and what they leave out."""
    words = [
        "Rows are prompts, columns are methods; pictures of a row share their seeds and none was selected."
    ]
    if BASE in results.methods:
        words.append("The base model does not know the subject and is given its class word.")
    if plan.seeds < len(results.seeds):
        words.append(f"Of {len(results.seeds)} seeds, the first {plan.seeds} of each prompt are shown.")
    if plan.prompts < max(len(subject["prompts"]) for subject in results.subjects):
        words.append(f"To keep this file small, at most {plan.prompts} prompts of a subject are shown.")
    if plan.side < side:
        words.append(f"Pictures are shrunk from {side} to {plan.side} pixels.")
    elif side <= SMALL:
        words.append(f"Pictures have {side} pixels a side and are shown enlarged.")
    if len(results.subjects) > shown:
        words.append(f"{shown} subjects stand open; select another to see it.")
    return element("p", " ".join(words), class_="note")


def _subject(results: Results, subject: dict[str, Any], plan: Plan) -> Iterator[Markup]:
    """The subject's real pictures, a few prompts, the others folded."""
    real = [
        picture(path, plan.side, f"{subject['name']}, real picture {number}")
        for number, path in enumerate(results.real_pictures(subject), start=1)
    ]
    missing = element("p", "The real pictures are no longer where the run found them.", class_="note")
    caption = element("figcaption", "Real pictures")
    yield (
        element("figure", caption, element("div", *real, class_="strip"), class_="real") if real else missing
    )

    records = _by_prompt(results, subject["name"])
    prompts = [sorted(records)[i] for i in evenly(plan.prompts, len(records))]
    few = [prompts[i] for i in evenly(OPEN_PROMPTS, len(prompts))]
    rest = [prompt for prompt in prompts if prompt not in few]
    yield from _grid(
        results, f"Samples of {subject['name']}", {prompt: records[prompt] for prompt in few}, plan
    )
    if rest:
        yield join(Markup("<details>"), element("summary", f"{len(rest)} more prompts of {subject['name']}"))
        more = {prompt: records[prompt] for prompt in rest}
        yield from _grid(results, f"More samples of {subject['name']}", more, plan)
        yield Markup("</details>")


def _by_prompt(results: Results, subject: str) -> dict[int, dict[tuple[str, int], dict[str, Any]]]:
    """prompt index -> (method, seed) -> record."""
    found: dict[int, dict[tuple[str, int], dict[str, Any]]] = {}
    for method in results.methods:
        for record in results.records(method, subject):
            found.setdefault(record["prompt_index"], {})[method, record["seed"]] = record
    return found


def _grid(results: Results, caption: str, rows: dict[int, dict], plan: Plan) -> Iterator[Markup]:
    """One table, row by row."""
    heads = [part("th", label(method), scope="col") for method in results.methods]
    head = part("tr", part("th", "Prompt", scope="col"), *heads)
    yield join(
        Markup(f'<div class="scroll"><table class="samples" role="table" style="--columns:{len(heads)}">'),
        element("caption", caption),
        part("thead", head),
        Markup('<tbody role="rowgroup">'),
    )
    for row in rows.values():
        texts = {method: record["prompt"] for (method, _), record in row.items()}
        text = next((texts[method] for method in texts if method != BASE), texts.get(BASE))
        seeds = sorted({seed for _, seed in row})[: plan.seeds]
        cells = [_cell(results, row, method, seeds, plan) for method in results.methods]
        yield part("tr", part("th", text, scope="row"), *cells)
    yield Markup("</tbody></table></div>")


def _cell(results: Results, row: dict, method: str, seeds: list[int], plan: Plan) -> Markup:
    """The pictures of one prompt by one method; a word in the place of each that is not there."""
    shown: list[Markup] = []
    for seed in seeds:
        record = row.get((method, seed))
        path = results.folder / record["image"] if record else None
        if path is None or not path.is_file():
            shown.append(element("span", "not drawn" if path is None else "file missing", class_="absent"))
        else:
            shown.append(picture(path, plan.side, f"{label(method)}, seed {seed}: {record['prompt']}"))
    return part("td", element("div", *shown, class_="cell"))

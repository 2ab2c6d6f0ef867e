"""The training curves of a report: losses, and the concept's distance to its class, from a run's logs."""

from collections.abc import Sequence

from utils.evaluation.folder import BASE
from utils.report.charts import Curve, Point, legend, line_chart
from utils.report.folder import Results
from utils.report.markup import Markup, element, join
from utils.report.tables import known, label, number, scrolling

DRAWN_POINTS = 150  # of a curve, so that a chart stays a few kilobytes
SMOOTHED_SHARE = 20  # the running mean covers one step in so many of the training

# key in log.jsonl -> title, what it is; in the order of the charts
LOSSES = {
    "loss_spl": (
        "Distance to the class",
        "1 − cosine between the text features of the concept’s phrase and of its class alone; 0 keeps the "
        "meaning of the class. It is measured for every method and trained only where it has a weight.",
    ),
    "loss_denoise": ("Denoising loss", "the error of the predicted noise on the subject’s pictures."),
    "loss_prior": ("Prior loss", "the error of the predicted noise on class pictures."),
    "loss_mlm": ("Masked-word loss", "cross-entropy of the masked words."),
    "loss": ("Total loss", "the weighted sum that is minimised; methods add different terms."),
}
EXACT = "loss_spl"  # depends on the weights alone and needs no smoothing


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Running mean over `window` values centred on each; fewer at both ends."""
    before, after = (window - 1) // 2, window // 2
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    spans = [(max(0, i - before), min(len(values), i + after + 1)) for i in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in spans]


def thin(points: Sequence[Point], most: int = DRAWN_POINTS) -> list[Point]:
    """Every k-th point and the last, so that about `most` are left."""
    stride = -(-len(points) // most) or 1
    return [*points[:-1:stride], *points[-1:]]


def mean_line(lines: Sequence[Sequence[Point]]) -> list[Point]:
    """The mean over lines at each x that all of them have."""
    tables = [dict(line) for line in lines]
    shared = sorted(set(tables[0]).intersection(*tables[1:]))
    return [(x, sum(table[x] for table in tables) / len(tables)) for x in shared]


def loss_lines(results: Results, key: str) -> dict[str, list[list[Point]]]:
    """method -> one line per subject, smoothed unless the loss is exact."""
    found: dict[str, list[list[Point]]] = {}
    for method in results.methods:
        for subject in results.subjects:
            points = [
                (line["step"], line[key])
                for line in results.log(method, subject["name"])
                if known(line.get(key))
            ]
            if points:
                window = 1 if key == EXACT else max(1, len(points) // SMOOTHED_SHARE)
                values = smooth([y for _, y in points], window)
                line = list(zip([x for x, _ in points], values, strict=True))
                found.setdefault(method, []).append(line)
    return found


def curve_section(results: Results) -> Markup:
    """One chart per loss, and a table of where the losses ended."""
    logged = {key: lines for key in LOSSES if (lines := loss_lines(results, key))}
    if not logged:
        return element("p", "The results folder holds no training logs, so there are no curves.")
    trained = [method for method in results.methods if method != BASE]
    charts = [_figure(key, lines, trained) for key, lines in logged.items()]
    note = "Thick lines are means over subjects, thin ones single subjects."
    table = scrolling(_ends(results, logged), "Where training ended")
    return join(element("p", note, class_="note"), element("div", *charts, class_="charts"), table)


def _figure(key: str, lines: dict[str, list[list[Point]]], trained: list[str]) -> Markup:
    title, meaning = LOSSES[key]
    curves = [
        Curve(
            label(method), trained.index(method), thin(mean_line(members)), [thin(line) for line in members]
        )
        for method, members in lines.items()
    ]
    ends = "; ".join(f"{curve.name} ends at {curve.points[-1][1]:.3g}" for curve in curves if curve.points)
    chart = line_chart(curves, "Training step", title, f"{title} over training steps. {ends}.")
    steps = max(len(line) for members in lines.values() for line in members)
    window = max(1, steps // SMOOTHED_SHARE)
    smoothed = f" Smoothed: running mean over {window} steps." if key != EXACT and window > 1 else ""
    text = element("figcaption", element("b", f"{title}: "), meaning, smoothed, " ", legend(curves))
    return element("figure", text, chart)


def _ends(results: Results, logged: dict[str, dict[str, list[list[Point]]]]) -> Markup:
    """Methods x losses at the last step: mean, lowest and highest subject."""
    rows = []
    for method in results.methods:
        cells = []
        for lines in logged.values():
            ends = [line[-1][1] for line in lines.get(method, [])]
            if ends:
                span = element(
                    "span", "(", number(min(ends)), " to ", number(max(ends)), ")", class_="interval"
                )
                cells.append(element("td", number(sum(ends) / len(ends)), " ", span))
            else:
                cells.append(element("td", number(None)))
        if method != BASE:
            rows.append(element("tr", element("th", label(method), scope="row"), *cells))
    heads = [element("th", LOSSES[key][0], scope="col") for key in logged]
    head = element("thead", element("tr", element("th", "Method", scope="col"), *heads))
    caption = element("caption", "Where training ended: mean over subjects (lowest to highest subject)")
    return element("table", caption, head, element("tbody", *rows), class_="numbers")

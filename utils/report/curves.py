"""The charts of a report: training losses from a run's logs, and prompts against likeness."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from utils.evaluation.folder import BASE
from utils.report.charts import Curve, Point, line_chart, scatter
from utils.report.folder import Results
from utils.report.words import known, label
from utils.scores.table import OBEYED_ALL, score_row

DRAWN_POINTS = 150  # of a curve, so that a chart stays a few kilobytes
SMOOTHED_SHARE = 20  # the running mean covers one step in so many of the training

# key in log.jsonl -> title, what it is; in the order of the charts
LOSSES = {
    "loss_spl": (
        "Distance to the class",
        "1 − cosine between the text features of the concept’s phrase and of its class alone; 0 keeps the "
        "meaning of the class. It is measured for every method and trained only where it has a weight.",
    ),
    "loss_denoise": ("Denoising loss", "the error of the predicted noise on the subject’s images."),
    "loss_prior": ("Prior loss", "the error of the predicted noise on class images."),
    "loss_mlm": ("Masked-word loss", "cross-entropy of the masked words."),
    "loss_dop": (
        "Output preservation loss",
        "the error between what the tuned model and the base predict under captions with the class alone.",
    ),
    "loss_dco": (
        "Consistency loss",
        "the subject’s images become likelier than by the base, with no more change than it takes; in place "
        "of the denoising loss.",
    ),
    "loss_accord": (
        "Context loss",
        "the difference of the concept’s and the class’s cosines with the text features of other things.",
    ),
    "loss_l2": ("Distance from the start", "the squared distance of what trains from its start."),
    "loss": ("Total loss", "the weighted sum that is minimised; methods add different terms."),
}
LOSS = "loss_"  # begins the name of every loss in the log
EXACT = "loss_spl"  # depends on the weights alone and needs no smoothing


def shown_losses(records: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """key -> title, what it is: LOSSES, and before their sum every other loss that the log's records hold."""
    found = dict.fromkeys(key for record in records for key in record if key.startswith(LOSS))
    others = {
        key: (f"{key.removeprefix(LOSS).replace('_', ' ').capitalize()} loss", f"{key} of the log.")
        for key in found
        if key not in LOSSES
    }
    rows = dict(LOSSES)
    total = rows.pop("loss")
    return rows | others | {"loss": total}


@dataclass(frozen=True)
class LossChart:
    """One loss: its chart, and where each method's subjects ended."""

    title: str
    meaning: str
    window: int  # steps of the running mean, 1 where there is none
    curves: list[Curve]
    ends: dict[str, list[float]]
    svg: Markup


def loss_charts(results: Results) -> Iterator[LossChart]:
    """A chart for each loss that a log holds."""
    trained = [method for method in results.methods if method != BASE]
    logs = [results.log(method, subject["name"]) for method in trained for subject in results.subjects]
    for key, (title, meaning) in shown_losses(line for log in logs for line in log).items():
        lines = loss_lines(results, key)
        if not lines:
            continue
        curves = [
            Curve(label(m), trained.index(m), thin(mean_line(each)), [thin(line) for line in each])
            for m, each in lines.items()
        ]
        ends = "; ".join(
            f"{curve.name} ends at {curve.points[-1][1]:.3g}" for curve in curves if curve.points
        )
        window = 1 if key == EXACT else _window(max(len(line) for each in lines.values() for line in each))
        svg = line_chart(key, curves, "Training step", title, f"{title} over training steps. {ends}.")
        last = {method: [line[-1][1] for line in each] for method, each in lines.items()}
        yield LossChart(title, meaning, window, curves, last, svg)


def loss_lines(results: Results, key: str) -> dict[str, list[list[Point]]]:
    """method -> one line per subject, smoothed unless the loss is exact."""
    lines: dict[str, list[list[Point]]] = {}
    for method in results.methods:
        for subject in results.subjects:
            log = [line for line in results.log(method, subject["name"]) if known(line.get(key))]
            if log:
                values = smooth([line[key] for line in log], 1 if key == EXACT else _window(len(log)))
                points = zip((line["step"] for line in log), values, strict=True)
                lines.setdefault(method, []).append(list(points))
    return lines


def _window(steps: int) -> int:
    return max(1, steps // SMOOTHED_SHARE)


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


def trade_off(results: Results) -> Markup | None:
    """Prompts obeyed, or CLIP-T, against DINO-I, a dot for each method; None where a score is not there."""
    up = next((name for name in (OBEYED_ALL, "clip_t") if name in results.metrics), None)
    dots, trained = {}, [method for method in results.methods if method != BASE]
    for row in results.table["rows"]:
        x, y = row["metric"].get("dino_i") or {}, row["metric"].get(up) or {}
        if known(x.get("mean")) and known(y.get("mean")):
            series = trained.index(row["method"]) if row["method"] != BASE else None
            dots[label(row["method"])] = (series, x, y)
    if not dots:
        return None
    name = score_row(up).label
    places = "; ".join(
        f"{m}: DINO-I {x['mean']:.3f}, {name} {y['mean']:.3f}" for m, (_, x, y) in dots.items()
    )
    y_label = "Share of images with every word" if up == OBEYED_ALL else name
    return scatter("trade-off", dots, "DINO-I, likeness to the subject", y_label, f"{places}.")

"""How a training is doing: its log as curves, its state and the time left in words."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from utils.app.jobs import Job
from utils.app.trainer import FAILED, STOPPED, STOPPING, TRAINED, Status
from utils.common.words import duration
from utils.report.charts import Curve, line_chart
from utils.report.curves import EXACT, SMOOTHED_SHARE, shown_losses, smooth, thin
from utils.report.words import known

FEWEST_POINTS = 3  # of a curve


def curves(log: Sequence[dict[str, Any]], steps: int) -> list[tuple[str, str, Markup]]:
    """(title, what it is, the chart) for each loss in the log: smoothed over the raw values.

    steps: of the whole training; a running mean covers one in twenty of them.
    """
    rows = shown_losses(log)
    charts = []
    for name in ("loss_denoise", *(name for name in rows if name not in ("loss_denoise", "loss"))):
        points = [(record["step"], record[name]) for record in log if known(record.get(name))]
        if len(points) < FEWEST_POINTS:
            continue
        window = 1 if name == EXACT else max(1, steps // SMOOTHED_SHARE)
        values = smooth([value for _, value in points], window)
        line = thin(list(zip((step for step, _ in points), values, strict=True)))
        curve = Curve(name, 0, line, [] if window == 1 else [thin(points)])
        title, meaning = rows[name]
        description = f"{title}, {values[0]:.3g} at first, {values[-1]:.3g} now"
        sentence = f"{meaning[0].upper()}{meaning[1:]}"
        charts.append((title, sentence, line_chart(name, [curve], "Step", "", description)))
    return charts


def in_words(job: Job, status: Status) -> str:
    """One sentence on where the training is."""
    of = f"step {status.step} of {status.steps}"
    if status.state == TRAINED:
        return f"Trained, {status.steps} steps. Write prompts below."
    if status.state == STOPPING:
        return f"Stopping: it saves after {'this step' if status.step else 'loading'} ({of})."
    if status.state == FAILED:
        return f"It ended with an error: {status.message}"
    if status.state == STOPPED:
        why = f" ({status.message})" if status.message else ""
        rest = f"goes on from step {status.saved}" if status.saved else "begins anew, with the same images"
        return f"Stopped after {of}{why}. Resume {rest}."
    if status.step == status.steps:
        return f"Training, {of}: drawing samples and saving."
    if status.step:
        left = f", {duration(status.seconds_left)} left" if status.seconds_left is not None else ""
        return f"Training, {of}{left}."
    return before_the_first_step(*job.class_images())


def before_the_first_step(drawn: int, wanted: int) -> str:
    if drawn < wanted and drawn:
        return f"Drawing class images, {drawn} of {wanted}."
    return "Loading the base model." if not wanted else "Loading the base model, then drawing class images."

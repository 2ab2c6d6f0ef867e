"""Small line charts as inline SVG, drawn by hand: one colour and dash per curve, members as thin lines.

Colours and fonts come from the style sheet of the page (classes `series-0`, `series-1`, ...), so that a chart
follows the page into the dark and onto paper.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from utils.report.markup import Markup, element, join

Point = tuple[float, float]
WIDTH, HEIGHT = 400, 270  # units of the view box; the picture scales
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 44  # margins
SERIES = 6  # looks the style sheet knows; later curves start again


@dataclass(frozen=True)
class Curve:
    """One line of a chart; `members` are the lines it is the mean of. Points are (x, y) by increasing x."""

    name: str
    series: int  # which colour and dash
    points: Sequence[Point]
    members: Sequence[Sequence[Point]] = ()


def line_chart(curves: Sequence[Curve], x_label: str, y_label: str, description: str) -> Markup:
    """An <svg> of the curves, x from 0, y from 0 or the lowest value.

    description: what a screen reader says instead of the picture. At least one finite point is needed.
    """
    lines = [line for curve in curves for line in (curve.points, *curve.members)]
    xs = [x for line in lines for x, _ in line]
    ys = [y for line in lines for _, y in line if math.isfinite(y)]
    x_ticks, y_ticks = ticks(0, max(xs)), ticks(min(0, *ys), max(ys))

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def path(line: Sequence[Point], look: str, title: str) -> Markup:
        corners = [at(x, y) for x, y in line if math.isfinite(y)]
        drawn = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)
        return element("path", element("title", title), class_=look, d=drawn) if corners else Markup()

    members = [path(line, f"member series-{c.series % SERIES}", c.name) for c in curves for line in c.members]
    means = [path(curve.points, f"mean series-{curve.series % SERIES}", curve.name) for curve in curves]
    return element(
        "svg",
        *_axes(x_ticks, y_ticks, at, x_label, y_label),
        *members,
        *means,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=description,
        class_="chart",
    )


def legend(curves: Sequence[Curve]) -> Markup:
    """A key of the curves: a short stroke in the look of each, and its name."""
    keys = []
    for curve in curves:
        stroke = element("path", d="M1 5H27", class_=f"mean series-{curve.series % SERIES}")
        swatch = element("svg", stroke, viewBox="0 0 28 10", class_="key", aria_hidden="true")
        keys.append(element("span", swatch, " ", curve.name, class_="key-entry"))
    return element("span", *keys, class_="legend")


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """About `about` round numbers, 1, 2 or 5 times a power of ten apart, that enclose [low, high]."""
    span = high - low if high > low else abs(high) or 1.0
    rough = span / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def tick_label(value: float, step: float) -> str:
    """`value` with as many decimals as ticks `step` apart need."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:,.{decimals}f}".replace("-", "−")


def _axes(x_ticks, y_ticks, at, x_label: str, y_label: str) -> list[Markup]:
    """Grid lines, numbers and the names of both axes."""
    drawn = []
    left, right = at(x_ticks[0], 0)[0], at(x_ticks[-1], 0)[0]
    for value in y_ticks:
        y = at(0, value)[1]
        base = "axis" if value == y_ticks[0] else "grid"
        drawn.append(element("path", class_=base, d=f"M{left:.1f} {y:.1f}H{right:.1f}"))
        label = tick_label(value, y_ticks[1] - y_ticks[0])
        drawn.append(element("text", label, x=f"{left - 7:.1f}", y=f"{y + 4:.1f}", text_anchor="end"))
    bottom = at(0, y_ticks[0])[1]
    for value in x_ticks:
        x = at(value, 0)[0]
        drawn.append(element("path", class_="axis", d=f"M{x:.1f} {bottom:.1f}v4"))
        label = tick_label(value, x_ticks[1] - x_ticks[0])
        drawn.append(element("text", label, x=f"{x:.1f}", y=f"{bottom + 18:.1f}", text_anchor="middle"))
    middle_x, middle_y = (left + right) / 2, (bottom + TOP) / 2
    name = element("text", x_label, x=f"{middle_x:.1f}", y=HEIGHT - 6, text_anchor="middle")
    turn = f"rotate(-90 13 {middle_y:.1f})"
    side = element("text", y_label, x=13, y=f"{middle_y:.1f}", text_anchor="middle", transform=turn)
    return [*drawn, join(name, side)]

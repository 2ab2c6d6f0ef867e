"""Charts as inline SVG by matplotlib, which follow the page into the dark and onto paper.

matplotlib draws in stand-in colours; each gives way to a colour variable of the page's style. Text stays
text in the page's own font. The same numbers give the same bytes.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

Point = tuple[float, float]
Interval = Mapping[str, float | None]  # mean, low, high; the ends None where there is none
SERIES = 6  # looks the style sheet knows; later curves start again
DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1.5, 2)), (0, (3, 3)), (0, (9, 3)))
COLOURS = {f"#0{i}0203": f"var(--c{i})" for i in range(SERIES)}
TEXT, GRID = "#0a0b0c", "#0d0e0f"
COLOURS |= {TEXT: "var(--minor)", GRID: "var(--grid)"}
STYLE = matplotlib.rc_params_from_file(
    Path(__file__).with_name("report.mplstyle"), use_default_template=False
)


@dataclass(frozen=True)
class Curve:
    """One line of a chart; `members` are the lines it is the mean of. Points are (x, y) by increasing x."""

    name: str
    series: int  # which colour and dash
    points: Sequence[Point]
    members: Sequence[Sequence[Point]] = ()


def line_chart(name: str, curves: Sequence[Curve], x_label: str, y_label: str, description: str) -> Markup:
    """An <svg> of the curves, x from 0, y from 0 or the lowest value.

    name: of the chart in its page, so that ids differ. description: for screen readers.
    """
    with matplotlib.rc_context(STYLE):
        axes = _axes(x_label, y_label)
        for i, curve in enumerate(curves):
            for j, line in enumerate((curve.points, *curve.members)):
                look = {"linewidth": 1.7, "linestyle": DASHES[curve.series % SERIES], "gid": f"mean-{i}"}
                if j:
                    look = {"linewidth": 0.7, "alpha": 0.32, "gid": f"member-{i}-{j}"}
                axes.plot(*_columns(line), color=_colour(curve.series), clip_on=False, zorder=3 - j, **look)
        values = [y for curve in curves for line in (curve.points, *curve.members) for _, y in line]
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=min([0, *filter(math.isfinite, values)]))
        return _svg(axes.figure, name, description)


def scatter(
    name: str,
    dots: Mapping[str, tuple[int | None, Interval, Interval]],
    x_label: str,
    y_label: str,
    description: str,
) -> Markup:
    """An <svg> with a labelled dot for each name in `dots`: (series, x, y) with its intervals as a cross.

    series: None for a reference, which has no colour of its own.
    """
    with matplotlib.rc_context(STYLE):
        axes = _axes(x_label, y_label)
        axes.margins(0.16)
        for i, (series, x, y) in enumerate(dots.values()):
            look = {"color": _colour(series), "clip_on": False}
            if x["low"] is not None:
                axes.plot([x["low"], x["high"]], [y["mean"]] * 2, linewidth=0.8, alpha=0.6, **look)
            if y["low"] is not None:
                axes.plot([x["mean"]] * 2, [y["low"], y["high"]], linewidth=0.8, alpha=0.6, **look)
            axes.plot([x["mean"]], [y["mean"]], "o", markersize=6, gid=f"dot-{i}", **look)
        _name_dots(axes, {title: (x["mean"], y["mean"]) for title, (_, x, y) in dots.items()})
        return _svg(axes.figure, name, description)


# Where a dot's name may stand: (offset in points, horizontal, vertical alignment), the best first.
PLACES = (
    ((7, 4), "left", "bottom"),
    ((-7, 4), "right", "bottom"),
    ((7, -4), "left", "top"),
    ((-7, -4), "right", "top"),
    ((0, 8), "center", "bottom"),
    ((0, -8), "center", "top"),
    ((7, 16), "left", "bottom"),
    ((-7, 16), "right", "bottom"),
    ((7, -16), "left", "top"),
    ((-7, -16), "right", "top"),
)


def _name_dots(axes: Axes, dots: Mapping[str, Point]) -> None:
    """A name next to each dot, at the first of PLACES where it covers no other name, no dot, no edge; where
    there is none, at the one that covers least."""
    renderer = FigureCanvasAgg(axes.figure).get_renderer()
    axes.figure.draw_without_rendering()  # so that the layout is done and places are known
    spots = [axes.transData.transform(point) for point in dots.values()]
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in spots]
    for title, point in dots.items():
        tried = []
        for order, (offset, ha, va) in enumerate(PLACES):
            how = {"xytext": offset, "ha": ha, "va": va, "textcoords": "offset points", "color": TEXT}
            text = axes.annotate(title, point, annotation_clip=False, **how)
            box = text.get_window_extent(renderer)
            text.remove()
            covered = sum(map(_area, filter(None, (Bbox.intersection(box, each) for each in taken))))
            inside = Bbox.intersection(box, axes.figure.bbox)
            beyond = _area(box) - (_area(inside) if inside else 0)
            tried.append((covered + beyond, order, box, how))
        _, _, box, how = min(tried, key=lambda each: each[:2])
        axes.annotate(title, point, annotation_clip=False, **how)
        taken.append(box)


def _area(box: Bbox) -> float:
    return abs(box.width * box.height)


def _axes(x_label: str, y_label: str) -> Axes:
    axes = Figure(figsize=(4.4, 2.9), layout="constrained").add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.xaxis.grid(False)
    axes.locator_params(nbins=5)
    axes.patch.set_visible(False)
    axes.figure.patch.set_visible(False)
    return axes


def _colour(series: int | None) -> str:
    return TEXT if series is None else list(COLOURS)[series % SERIES]


def _columns(line: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [x for x, _ in line], [y for _, y in line]


def _svg(figure: Figure, name: str, description: str) -> Markup:
    """The figure as an element whose ids begin with the chart's name, in the page's colours."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    head, body = re.search(r"(<svg.*?>)(.*)", buffer.getvalue(), re.DOTALL).groups()
    box = re.search(r'viewBox="([^"]*)"', head)[1]
    # Left out: a style for every element of the page, clipping that cuts nothing, matplotlib's fonts.
    body = re.sub(r"<defs>\s*<(style|clipPath).*?</defs>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r' clip-path="[^"]*"| font-family: [^;"]*;', "", body)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'href="#', f'href="#{name}-', body)
    for stand_in, variable in COLOURS.items():
        body = body.replace(stand_in, variable)
    label = escape(description)
    return Markup(f'<svg class="chart" role="img" aria-label="{label}" viewBox="{box}">{body}')

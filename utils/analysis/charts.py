"""Charts of the analyses as PNG and SVG, in the report's style and the colours of its page in daylight."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from utils.common.files import write_atomically
from utils.report.charts import DASHES, GRID, SERIES, STYLE, TEXT, Curve

PALETTE = ("#1f66b0", "#c2510f", "#1f7a58", "#7a4aa6", "#a3344f", "#6b6410")
DAYLIGHT = {TEXT: "#5b5d66", GRID: "#e6e5e0"}
FILE_STYLE = {
    key: DAYLIGHT.get(value, value) if isinstance(value, str) else value for key, value in STYLE.items()
}
FILE_STYLE |= {"text.color": "#1c1d20", "legend.frameon": False, "savefig.dpi": 160, "svg.fonttype": "path"}
WIDTH, HEIGHT = 4.6, 3.1  # inches of a panel


@dataclass(frozen=True)
class Panel:
    """A chart of lines: its title, axes and curves; `series` and names are shared by the figure's panels.

    linear_below: where a logarithmic axis becomes linear, so that 0 has a place; None: linear throughout.
    """

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    linear_below: float | None = None


@dataclass(frozen=True)
class Cloud:
    """Points (n, 2) of a name, in a colour; filled or as rings."""

    name: str
    series: int | None
    points: np.ndarray
    filled: bool = True


@dataclass(frozen=True)
class Bars:
    """Groups of bars: group -> one value per series, and per group an optional mark, e.g. of chance."""

    title: str
    y_label: str
    groups: Mapping[str, Sequence[float]]
    series: Sequence[str]
    marks: Mapping[str, float] = field(default_factory=dict)


def colour(series: int | None) -> str:
    """Of a series; None: of a reference, which has no colour of its own."""
    return DAYLIGHT[TEXT] if series is None else PALETTE[series % SERIES]


def save_lines(panels: Sequence[Panel], stem: Path, columns: int = 2) -> list[Path]:
    """Panels of lines with one legend below; y from 0."""
    with matplotlib.rc_context(FILE_STYLE):
        figure, axes = _figure(len(panels), columns)
        for panel, ax in zip(panels, axes, strict=True):
            for curve in panel.curves:
                dash = DASHES[curve.series // SERIES % len(DASHES)]
                look = {"linestyle": dash, "marker": "o", "markersize": 3, "clip_on": False}
                ax.plot(
                    *zip(*curve.points, strict=True), color=colour(curve.series), label=curve.name, **look
                )
            _label(ax, panel.title, panel.x_label, panel.y_label)
            ax.set_xlim(left=0)
            if panel.linear_below is not None:
                ax.set_yscale("symlog", linthresh=panel.linear_below)
            ax.set_ylim(0, (1.06 if panel.linear_below is None else 1.6) * max(ax.dataLim.y1, 1e-9))
            if panel.linear_below is not None:
                _name_ticks(ax, panel.linear_below)
        handles, names = axes[0].get_legend_handles_labels()
        _legend(figure, handles, names)
        return save_figure(figure, stem)


def save_clouds(
    panels: Sequence[tuple[str, Sequence[Cloud]]], labels: tuple[str, str], stem: Path, shared: bool = True
) -> list[Path]:
    """A scatter plot for each (title, clouds). shared: all with the same axes, else each with its own."""
    whole = [cloud.points for _, clouds in panels for cloud in clouds]
    with matplotlib.rc_context(FILE_STYLE):
        figure, axes = _figure(len(panels), min(3, len(panels)))
        for (title, clouds), ax in zip(panels, axes, strict=True):
            points = np.concatenate(whole if shared else [cloud.points for cloud in clouds])
            low, high = points.min(axis=0), points.max(axis=0)
            margin = 0.06 * (high - low).clip(min=1e-9)
            for cloud in clouds:
                face = colour(cloud.series) if cloud.filled else "none"
                look = {
                    "facecolors": face,
                    "edgecolors": colour(cloud.series),
                    "linewidths": 0.8,
                    "alpha": 0.75,
                }
                ax.scatter(*cloud.points.T, s=14, label=cloud.name, **look)
            _label(ax, title, *labels)
            ax.set_xlim(low[0] - margin[0], high[0] + margin[0])
            ax.set_ylim(low[1] - margin[1], high[1] + margin[1])
        named = {name: h for ax in axes for h, name in zip(*ax.get_legend_handles_labels(), strict=True)}
        _legend(figure, list(named.values()), list(named))
        return save_figure(figure, stem)


def save_bars(panels: Sequence[Bars], stem: Path) -> list[Path]:
    """Groups of bars, one panel below the other; a mark is a short line across its group."""
    with matplotlib.rc_context(FILE_STYLE):
        figure = Figure(figsize=(2 * WIDTH, HEIGHT * len(panels)), layout="constrained")
        for number, panel in enumerate(panels, start=1):
            ax = figure.add_subplot(len(panels), 1, number)
            width = 0.8 / len(panel.series)
            places = bar_places(list(panel.groups.values()), width)
            for i, name in enumerate(panel.series):
                heights = [values[i] for values in panel.groups.values()]
                look = {"color": colour(i), "alpha": 1 - 0.45 * (i // SERIES), "label": name}
                ax.bar([each[i] for each in places], heights, 0.9 * width, **look)
            for g, group in enumerate(panel.groups):
                if group in panel.marks:
                    y = panel.marks[group]
                    ax.plot([g - 0.45, g + 0.45], [y, y], color="#1c1d20", linewidth=1.2, linestyle=DASHES[1])
            _label(ax, panel.title, "", panel.y_label)
            ax.set_xticks(range(len(panel.groups)), list(panel.groups))
        handles, names = figure.axes[0].get_legend_handles_labels()
        _legend(figure, handles, names)
        return save_figure(figure, stem)


def save_heat(rows: Sequence[tuple[str, Sequence[tuple[str, np.ndarray]]]], stem: Path) -> list[Path]:
    """A row of images for each (name, [(title, image)]): (h, w, 3) of 0 … 1 as they are, (h, w) as heat from
    0 to its own highest value."""
    columns = max(len(images) for _, images in rows)
    with matplotlib.rc_context(FILE_STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(1.15 * columns, 1.35 * len(rows)), layout="constrained")
        for r, (name, images) in enumerate(rows):
            for c, (title, image) in enumerate(images):
                ax = figure.add_subplot(len(rows), columns, r * columns + c + 1)
                ax.imshow(image, cmap="viridis", vmin=0, vmax=max(float(image.max()), 1e-12))
                ax.set_title(title, fontsize=7, pad=2)
                ax.set_xticks([])
                ax.set_yticks([])
                if c == 0:
                    ax.set_ylabel(name, fontsize=7)
        return save_figure(figure, stem)


def bar_places(groups: Sequence[Sequence[float]], width: float) -> list[list[float]]:
    """Where the bars of each group stand: side by side and centred on the group's tick, 0, 1, …

    groups: for each, a value per series; what is not a number has no bar and takes no room.
    """
    places = []
    for g, values in enumerate(groups):
        here = [i for i, value in enumerate(values) if np.isfinite(value)]
        left = g - width * (len(here) - 1) / 2
        places.append([left + width * here.index(i) if i in here else float(g) for i in range(len(values))])
    return places


def _legend(figure: Figure, handles: Sequence[Artist], names: Sequence[str]) -> None:
    """Below the figure, in as many columns, up to three, as fit its width."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    for columns in (3, 2, 1):
        legend = figure.legend(handles, names, loc="outside lower center", ncols=columns)
        if columns == 1 or legend.get_window_extent(renderer).width <= figure.bbox.width:
            return
        legend.remove()


def _name_ticks(ax: Axes, linear_below: float) -> None:
    """Labels at 0 and at 1, 2 and 5 times powers of ten; at the powers alone where the axis has many."""
    top = ax.get_ylim()[1]
    powers = range(math.floor(math.log10(linear_below)), math.floor(math.log10(max(top, linear_below))) + 1)
    steps = (1, 2, 5) if len(powers) <= 3 else (1,)
    values = [k * 10.0**power for power in powers for k in steps]
    ax.set_yticks([0, *(v for v in values if linear_below <= v <= top)])
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_locator(NullLocator())


def _figure(count: int, columns: int) -> tuple[Figure, list[Axes]]:
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(count)]


def _label(ax: Axes, title: str, x_label: str, y_label: str) -> None:
    ax.set_title(title, fontsize=9.5, loc="left")
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)
    ax.xaxis.grid(False)


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """stem.png and stem.svg, written atomically."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    for path in paths:
        kind = path.suffix[1:]
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        write_atomically(
            path, lambda partial, kind=kind, m=metadata: figure.savefig(partial, format=kind, metadata=m)
        )
    return paths

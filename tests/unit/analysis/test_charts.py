"""Charts as files: PNG and SVG, the same bytes for the same numbers, heat scaled to its own highest."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from utils.analysis.charts import (
    Bars,
    Cloud,
    Panel,
    _legend,
    _name_ticks,
    bar_places,
    save_bars,
    save_clouds,
    save_heat,
    save_lines,
)
from utils.report.charts import Curve

CURVES = [Curve(f"method {i}", i, [(0, 0.0), (50, 0.1 * i), (100, 0.2)]) for i in range(8)]


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    panels = [Panel("Distance", "Step", "1 − cos", CURVES), Panel("Log", "Step", "d", CURVES, 1e-3)]
    bars = [Bars("Share", "share", {"a": [0.1, float("nan")], "b": [0.2, 0.3]}, ["x", "y"], {"a": 0.15})]
    clouds = [("one", [Cloud("dog", None, np.eye(3, 2)), Cloud("cat", 1, np.ones((3, 2)), False)])]
    heat = [("base", [("image", np.zeros((4, 4, 3))), ("dog", np.eye(4))])]
    for name, save in {
        "lines": lambda stem: save_lines(panels, stem),
        "bars": lambda stem: save_bars(bars, stem),
        "clouds": lambda stem: save_clouds(clouds, ("x", "y"), stem),
        "heat": lambda stem: save_heat(heat, stem),
    }.items():
        one, two = save(tmp_path / "one" / name), save(tmp_path / "two" / name)
        assert [path.name for path in one] == [f"{name}.png", f"{name}.svg"]
        assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
        assert Image.open(one[0]).convert("L").getextrema()[0] < 150  # something is drawn


def test_a_heat_map_is_scaled_to_its_own_highest_value(tmp_path):
    faint, strong = 1e-6 * np.eye(8), 1e3 * np.eye(8)
    one, _ = save_heat([("a", [("m", faint)])], tmp_path / "faint")
    two, _ = save_heat([("a", [("m", strong)])], tmp_path / "strong")
    assert Image.open(one).tobytes() == Image.open(two).tobytes()


def test_bars_of_a_group_are_centred_on_its_tick():
    nan = float("nan")
    (full, gap, alone) = bar_places([[1, 2, 3], [nan, 2, 3], [nan, nan, 3]], 0.25)
    assert full == [-0.25, 0, 0.25]
    assert gap[1:] == [0.875, 1.125] and alone[2] == 2


@pytest.mark.parametrize("names", [["a", "b", "c"], ["concept before training"] * 6, ["x" * 45] * 3])
def test_a_legend_fits_its_figure(names):
    figure = Figure(figsize=(4.6, 3.1), layout="constrained")
    handles = [figure.add_subplot().plot([0, 1], [0, 1])[0] for _ in names]
    _legend(figure, handles, names)
    (legend,) = figure.legends
    assert legend.get_window_extent(FigureCanvasAgg(figure).get_renderer()).width <= figure.bbox.width
    assert [text.get_text() for text in legend.get_texts()] == names


@pytest.mark.parametrize(
    ("top", "labels"),
    [
        (0.0048, ["0", "0.001", "0.002"]),
        (0.3, ["0", "0.001", "0.002", "0.005", "0.01", "0.02", "0.05", "0.1", "0.2"]),
        (20, ["0", "0.001", "0.01", "0.1", "1", "10"]),
    ],
)
def test_a_logarithmic_axis_has_several_labels(top, labels):
    axes = Figure().add_subplot()
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.set_ylim(0, top)
    _name_ticks(axes, 1e-3)
    FigureCanvasAgg(axes.figure).draw()
    assert [text.get_text() for text in axes.get_yticklabels()] == labels

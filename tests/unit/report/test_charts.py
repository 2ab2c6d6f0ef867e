"""Names beside dots, and losses that the report did not know of."""

import itertools

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox

from utils.report.charts import _axes, _name_dots
from utils.report.curves import LOSSES, shown_losses

NAMES = ("Base model", "K/V only", "ClassDiffusion", "Custom Diffusion", "Textual Inversion", "DreamBooth")


@pytest.mark.parametrize("spread", [0.05, 1.0])
def test_names_do_not_cover_one_another(spread: float):
    places = [(0.5, 0.5), (0.52, 0.5), (0.9, 0.51), (0.5, 0.9), (0.1, 0.1), (0.52, 0.53)]
    dots = {name: (0.5 + spread * x, y) for name, (x, y) in zip(NAMES, places, strict=True)}
    axes = _axes("x", "y")
    axes.margins(0.16)
    for x, y in dots.values():
        axes.plot([x], [y], "o")
    _name_dots(axes, dots)
    renderer = FigureCanvasAgg(axes.figure).get_renderer()
    axes.figure.draw_without_rendering()
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert [text.get_text() for text in axes.texts] == list(dots)
    for one, other in itertools.combinations(boxes, 2):
        assert Bbox.intersection(one, other) is None, (one, other)


def test_a_loss_that_is_new_has_a_chart_of_its_name():
    rows = shown_losses([{"step": 1, "loss": 1.0, "loss_spl": 0.1, "loss_edge_map": 0.5, "lr_rows": 1e-3}])
    assert list(rows) == [*list(LOSSES)[:-1], "loss_edge_map", "loss"]
    assert rows["loss_edge_map"] == ("Edge map loss", "loss_edge_map of the log.")

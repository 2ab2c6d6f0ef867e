"""Charts as files: PNG and SVG, the same bytes for the same numbers, heat scaled to its own highest."""

import numpy as np
from PIL import Image

from utils.analysis.charts import Bars, Cloud, Panel, save_bars, save_clouds, save_heat, save_lines
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

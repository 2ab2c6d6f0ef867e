"""The scatter plot of scripts/toon/tune.py: every point of every method, words obeyed against likeness."""

from pathlib import Path

import numpy as np

from utils.analysis.charts import Cloud, save_clouds
from utils.common.files import read_json
from utils.config.methods import METHODS
from utils.report.charts import SERIES

LABELS = ("words obeyed, %", "likeness (0: base, 1: real)")


def draw_points(results: Path) -> list[Path]:
    """points.png and points.svg next to the methods' files: all points, and the best one of each method."""
    every, best = [], []
    for name, method in METHODS.items():
        if (results / f"{name}.json").is_file():
            points = read_json(results / f"{name}.json")["points"]
            places = np.array([(100 * point["obeyed"], point["likeness"]) for point in points])
            look = {"series": len(every), "filled": len(every) < SERIES}
            every.append(Cloud(method.title, points=places, **look))
            best.append(Cloud(method.title, points=places[:1], **look))
    panels = [("all points", every), ("the best of each method", best)]
    return save_clouds(panels, LABELS, results / "points", shared=False)

"""The table of scores: a new score is a row and a function, and nothing else."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.results_folder import write_results
from utils.common.errors import UserError
from utils.common.images import to_pixels
from utils.evaluation.config import EvaluationConfig
from utils.evaluation.data_sets import Individual, Subject
from utils.evaluation.scoring import Scorer, check_metrics, needed_kinds, score_subject
from utils.evaluation.shots import shots_of
from utils.evaluation.table import as_markdown, build_table
from utils.report.page import write_report
from utils.scores.table import SCORES, Score, in_order, score_row


def brightness(images) -> torch.Tensor:
    """(N,) in [0, 1]."""
    return torch.stack([to_pixels(image).mean() / 2 + 0.5 for image in images.opened])


def contrast(images) -> float:
    """Between the lightest image and the darkest."""
    return float(brightness(images).max() - brightness(images).min())


@pytest.fixture
def added(monkeypatch):
    low = Score("contrast", "Contrast", -1, "Difference of light.", of_subject=contrast)
    high = Score("brightness", "Brightness", 1, "Mean light.", of_images=brightness, percent=True)
    monkeypatch.setitem(SCORES, low.name, low)
    monkeypatch.setitem(SCORES, high.name, high)


def test_a_score_of_one_s_own_is_computed_and_shown_everywhere(added, tmp_path):
    assert EvaluationConfig(dataset="toon", metrics="brightness,contrast").metrics
    check_metrics(["brightness", "contrast"], {}, "itc")
    individual = Individual("<new1>", "dog", tmp_path, "")
    scores = {}
    for name, shades in (("rex", (51, 102)), ("mia", (204, 204))):
        subject = Subject(name, (individual,), ("a {}",))
        shots = shots_of(subject, "classdiffusion", [0, 1])
        for shot, shade in zip(shots, shades, strict=True):
            (tmp_path / shot.image).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (shade,) * 3).save(tmp_path / shot.image)
        scorer = Scorer(["brightness", "contrast"], {}, device="cpu")
        folder = tmp_path / "classdiffusion" / name
        scores[name, "classdiffusion"] = score_subject(tmp_path, folder, subject, shots, [], scorer)
        records = [json.loads(line) for line in (folder / "records.jsonl").open()]
        assert [record["brightness"] for record in records] == pytest.approx([s / 255 for s in shades])
    table = build_table(scores, ["rex", "mia"], ["classdiffusion"], [0, 1], {})
    assert table.metrics == ["contrast", "brightness"] and table.models == {}
    (row,) = table.rows
    assert row.metric["brightness"].mean == pytest.approx(0.55)
    assert row.metric["contrast"].mean == pytest.approx(0.1)
    assert "| contrast ↓ | brightness |" in as_markdown(table)

    results = write_results(tmp_path / "results")
    table = json.loads((results / "table.json").read_text())
    table["metrics"].append("brightness")
    for each in table["rows"]:
        each["metric"]["brightness"] = asdict(row.metric["brightness"])
    (results / "table.json").write_text(json.dumps(table))
    page = Path(write_report(results)).read_text()
    assert "Mean light." in page and page.count("Brightness") >= 3 and "55.0 %" in page


def test_rows_know_their_order_their_models_and_their_words():
    assert in_order(["obeyed_worn", "pres", "obeyed_all", "zeal", "clip_t"]) == [
        *("clip_t", "pres", "obeyed_all", "obeyed_worn", "zeal")
    ]
    assert needed_kinds(["div", "clip_i", "pres"]) == ["clip", "dino"]
    assert (score_row("pres").arrow, score_row("obeyed_worn").label) == ("↓", "Obeyed: worn")
    assert (score_row("obeyed_all").percent, score_row("zeal").good) == (True, 0)
    with pytest.raises(UserError, match="unknown metric 'fid'; choose from clip_t, blip_t, siglip_t, clip_i"):
        EvaluationConfig(dataset="toon", metrics="fid")

"""The report of a results folder: its numbers, pictures and curves, and what it says of missing parts."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from tests.results_folder import METRICS, STEPS, make_table, write_results
from utils.errors import UserError
from utils.report.charts import Curve, line_chart, tick_label, ticks
from utils.report.curves import mean_line, smooth, thin
from utils.report.folder import read_results
from utils.report.markup import Markup, element, join
from utils.report.page import write_report
from utils.report.prompts import prompt_scores, situation
from utils.report.samples import data_uri, evenly, make_plan, opened
from utils.report.tables import best


class Reader(HTMLParser):
    """Tables as lists of rows of cells, each cell (tag, text, [exact numbers]); pictures; all text."""

    def __init__(self, html: str):
        super().__init__()
        self.tables: dict[str, list[list[tuple[str, str, list[float]]]]] = {}
        self.images: list[dict[str, str]] = []
        self.words, self.bold, self.cell, self.caption, self.rows = "", [], None, None, []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "table":
            self.rows = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.cell = [tag, "", []]
        elif tag == "caption":
            self.caption = ""
        elif tag == "data":
            self.cell and self.cell[2].append(float(attrs["value"]))
        elif tag == "strong":
            self.bold.append(self.cell)
        elif tag == "img":
            self.images.append(attrs)

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.rows[-1].append(tuple(self.cell))
            self.cell = None
        elif tag == "table":
            self.tables[self.caption] = self.rows

    def handle_data(self, data):
        self.words += data
        if self.cell is not None:
            self.cell[1] += data
        elif self.rows == [] and self.caption == "":
            self.caption = data

    def table(self, start: str) -> list[list[tuple[str, str, list[float]]]]:
        [rows] = [rows for caption, rows in self.tables.items() if caption.startswith(start)]
        return rows


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    return write_results(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def html(results) -> str:
    return write_report(results).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html) -> Reader:
    return Reader(html)


@pytest.fixture
def changed(results, tmp_path):
    """changed(): a copy of the results that a test may write to."""
    return lambda: Path(shutil.copytree(results, tmp_path / "copy"))


def exact(row) -> list[list[float]]:
    return [numbers for tag, _, numbers in row if tag == "td"]


def ends(found: dict[str, float]) -> list[float]:
    return [found["mean"], found["low"], found["high"]]


def test_scores_and_intervals_are_those_of_the_table(page):
    table = make_table(("base", "custom_diffusion", "classdiffusion"))
    head, *rows = page.table("Scores:")
    assert [cell[1] for cell in head] == [
        "Method",
        "CLIP-T ↑data/toon/clip",
        "CLIP-I ↑data/toon/clip",
        "PRES ↓data/toon/dino",
        "Obeyed ↑",
    ]
    assert [row[0][1] for row in rows] == ["Base model", "Custom Diffusion", "ClassDiffusion"]
    for row, wanted in zip(rows, table["rows"], strict=True):
        assert exact(row) == [ends(wanted["metric"][name]) for name in METRICS]
    # clip_t and obeyed_all of the base: .2111 ± .03 and .2480 ± .03
    assert (rows[0][1][1], rows[0][4][1]) == ("0.211 [0.181, 0.241]", "24.8 % [21.8, 27.8]")


def test_the_summary_names_the_run(page):
    assert (
        "Custom Diffusion and ClassDiffusion on 2 subjects of 2 classes, 3 prompts each, 2 pictures per "
        "prompt (seeds 0, 1): 36 pictures in all. The base model is data/toon/sd."
    ) in page.words
    assert "mean over subjects and 95 % bootstrap interval (2 subjects, 12 pictures per method)" in page.words


def test_two_subjects_learned_together_leave_both_words_open():
    record = {"class": "teddy bear+barn", "text": "a teddy bear in front of a barn"}
    assert situation(record) == "a … in front of a …"
    assert situation({"class": "", "text": "a dog"}) == "a dog"


def test_differences_are_those_of_the_table_and_signed(page):
    table = make_table(("base", "custom_diffusion", "classdiffusion"))
    rows = page.table("Paired")[1:]
    assert [row[0][1] for row in rows] == [
        "Custom Diffusion− Base model",
        "ClassDiffusion− Base model",
        "ClassDiffusion− Custom Diffusion",
    ]
    for row, wanted in zip(rows, table["paired"], strict=True):
        assert exact(row) == [ends(wanted["metric"][name]) for name in METRICS]
    assert rows[2][1][1] == "+0.100 [+0.080, +0.120]"
    assert rows[2][4][1] == "+10.9 pp [−29.1, +50.9]"
    assert "ClassDiffusion against Custom Diffusion: better in CLIP-T (+0.100); worse in PRES" in page.words


def test_every_subject_has_its_row(page):
    rows = page.table("Scores of each subject")[1:]
    wanted = make_table(("base", "custom_diffusion", "classdiffusion"))["per_subject"]
    assert [exact(row) for row in rows] == [[[r["metric"][name]] for name in METRICS] for r in wanted]
    assert [row[0][1] for row in rows[::3]] == ["rex dog", "mia cat"]


def test_only_a_trained_method_that_is_better_for_sure_is_bold(page, results):
    read = read_results(results)
    # Higher clip_t is better and sure; lower pres is; clip_i's interval holds 0.
    assert [best(read, name) for name in METRICS] == ["classdiffusion", None, "custom_diffusion", None]
    bold = [cell[2] for cell in page.bold[:2]]
    rows = {row["method"]: row["metric"] for row in read.table["rows"]}
    assert bold == [ends(rows["custom_diffusion"]["pres"]), ends(rows["classdiffusion"]["clip_t"])]


def test_every_picture_is_embedded_and_described(page, results, html):
    # 3 prompts x 3 methods x 2 seeds of 2 subjects, and 2 real pictures of each
    assert len(page.images) == 36 + 4
    for image in page.images:
        kind, _, data = image["src"].partition(",")
        picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        assert kind == "data:image/jpeg;base64"
        assert [str(side) for side in picture.size] == [image["width"], image["height"]]
        assert image["class"] == "pixels"
    assert len({image["alt"] for image in page.images}) == len(page.images)
    assert "ClassDiffusion, seed 1: a photo of a <new1> cat wearing a hat" in {i["alt"] for i in page.images}
    assert not re.search(r"(?:src|href)=.?(?!data:|#)[a-z./]", html), "nothing is fetched"
    assert "url(" not in html and "@import" not in html and "<script" not in html


def test_a_sample_shows_the_picture_of_its_method_prompt_and_seed(page, results):
    [image] = [i for i in page.images if i["alt"].startswith("Custom Diffusion, seed 1: a <new1> dog on the")]
    shown = Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
    wanted = Image.open(results / "custom_diffusion/rex/images/02_1.png")
    for one, other in zip(shown.getpixel((4, 4)), wanted.getpixel((4, 4)), strict=True):
        assert abs(one - other) <= 4, "JPEG"


def test_text_is_escaped_everywhere(page, html):
    assert "<b>bold</b>" not in html
    assert html.count("&lt;b&gt;bold&lt;/b&gt;") >= 2 * 2 * 3, "alt texts, grids and the heat table"
    assert "2 cores <AMX>" in page.words
    assert (
        element("p", "<i>", Markup("<b>x</b>"), title='"&') == '<p title="&quot;&amp;">&lt;i&gt;<b>x</b></p>'
    )
    assert join("a<b", None, 3) == "a&lt;b3"
    assert element("img", src="x", alt="", hidden=None) == '<img src="x" alt="">'


def test_words_obeyed_are_counted_by_prompt_and_method(page, results):
    scores = prompt_scores(read_results(results))
    assert list(scores)[:2] == ["a photo of a … in the snow", "a photo of a … wearing a hat"]
    # 2 subjects x 2 seeds; only classdiffusion is right at seed 1
    assert scores["a photo of a … wearing a hat"]["custom_diffusion"]["worn"] == [2, 4]
    assert scores["a photo of a … wearing a hat"]["classdiffusion"]["all"] == [4, 4]
    rows = {row[0][1]: [cell[1] for cell in row[1:]] for row in page.table("Words obeyed over all")[1:]}
    assert list(rows) == ["all", "class", "place", "worn"]
    assert rows["all"] == ["50 % of 12", "50 % of 12", "100 % of 12"]
    assert rows["worn"] == ["50 % of 4", "50 % of 4", "100 % of 4"]
    hat = page.table("Words obeyed prompt by prompt")[2]
    assert [cell[1] for cell in hat] == [
        "a photo of a … wearing a hat",
        "50 all100 class50 worn",
        "50 all100 class50 worn",
        "100 all100 class100 worn",
    ]


def test_curves_end_where_the_logs_do(page, html):
    rows = {row[0][1]: exact(row) for row in page.table("Where training ended")[1:]}
    assert rows["ClassDiffusion"][0] == pytest.approx([0.001 * STEPS] * 3)
    assert rows["Custom Diffusion"][0] == pytest.approx([0.01 * STEPS] * 3)
    assert "Distance to the class over training steps. Custom Diffusion ends at 0.4; Class" in html
    assert html.count('<svg viewBox="0 0 400 270" role="img"') == 3
    assert "Smoothed: running mean over 2 steps." in page.words


def test_smoothing_thinning_and_means_of_lines():
    assert smooth([1, 2, 6, 2], 3) == [1.5, 3, 10 / 3, 4]
    assert smooth([1, 2, 6], 1) == [1, 2, 6]
    points = [(x, x * x) for x in range(1, 401)]
    thinned = thin(points, 100)
    assert thinned[:2] == [(1, 1), (5, 25)] and thinned[-1] == (400, 160000) and len(thinned) == 101
    assert thin(points[:3]) == points[:3]
    assert mean_line([[(1, 2), (2, 4), (3, 9)], [(1, 4), (2, 8)]]) == [(1, 3), (2, 6)]


def test_ticks_are_round_and_enclose():
    assert ticks(0, 400) == [0, 100, 200, 300, 400]
    assert ticks(0, 0.27) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert ticks(0, 0)[-1] > 0, "a flat line still has an axis"
    assert [tick_label(value, 0.02) for value in (0, 0.02, -0.1)] == ["0.00", "0.02", "−0.10"]
    assert tick_label(2000, 500) == "2,000"


def test_a_line_is_drawn_to_scale():
    chart = line_chart([Curve("A & B", 1, [(0, 0), (50, 1), (100, float("nan"))])], "step", "y", "says")
    left, bottom, right, top = 52, 270 - 44, 400 - 12, 12
    assert f"M{left}.0 {bottom}.0L{(left + right) / 2:.1f} {top}.0" in chart
    assert "<title>A &amp; B</title>" in chart and "nan" not in chart


def test_a_run_without_judged_words_gets_clip_t_by_prompt(tmp_path):
    page = Reader(write_report(write_results(tmp_path, obeyed=False)).read_text())
    assert "No recogniser judged these pictures" in page.words
    assert not [caption for caption in page.tables if caption.startswith("Words obeyed")]
    rows = page.table("CLIP-T prompt by prompt")[1:]
    assert [cell[1] for cell in rows[1]] == ["a photo of a … wearing a hat", "0.250", "0.260", "0.270"]


def test_a_run_without_base_says_so_and_one_method_has_no_differences(tmp_path):
    page = Reader(write_report(write_results(tmp_path, methods=("classdiffusion",))).read_text())
    assert "The base model was not sampled in this run" in page.words
    assert "there are no differences to show" in page.words
    assert page.bold == [], "one method cannot be best"


def test_missing_logs_real_pictures_and_samples_are_said(changed):
    folder = changed()
    for log in folder.glob("*/*/concept/log.jsonl"):
        log.unlink()
    subjects = json.loads((folder / "subjects.json").read_text())
    for subject in subjects:
        subject["pictures"] = ["gone.png"]
    (folder / "subjects.json").write_text(json.dumps(subjects))
    (folder / "classdiffusion/rex/images/00_0.png").unlink()
    (folder / "custom_diffusion/mia/records.jsonl").unlink()
    page = Reader(write_report(folder).read_text())
    assert "no training logs, so there are no curves" in page.words
    assert page.words.count("real pictures are no longer where the run found them") == 2
    assert page.words.count("file missing") == 1
    assert page.words.count("not drawn") == 6
    shutil.rmtree(folder / "base")
    for images in folder.glob("*/*/images"):
        shutil.rmtree(images)
    assert "so no samples are shown" in write_report(folder).read_text()


def test_a_score_that_is_missing_is_a_dash(changed):
    folder = changed()
    table = json.loads((folder / "table.json").read_text())
    del table["rows"][0]["metric"]["pres"]
    table["rows"][1]["metric"]["pres"] = {"mean": 0.5, "low": None, "high": None}
    table["per_subject"][0]["metric"]["clip_i"] = float("nan")
    (folder / "table.json").write_text(json.dumps(table))
    page = Reader(write_report(folder).read_text())
    rows = page.table("Scores:")
    assert [rows[1][3][1], rows[2][3][1]] == ["–", "0.500"]
    assert page.table("Scores of each subject")[1][3][1] == "–"


def test_one_subject_has_no_intervals_and_that_is_said(changed):
    folder = changed()
    table = json.loads((folder / "table.json").read_text())
    for row in table["rows"] + table["paired"]:
        for found in row["metric"].values():
            found["low"] = found["high"] = None
    (folder / "table.json").write_text(json.dumps(table))
    page = Reader(write_report(folder).read_text())
    assert "too few subjects for intervals" in page.words and "bootstrap" not in page.words
    assert page.table("Scores: mean over subjects (")[1][1][1] == "0.211"
    assert page.bold == [] and "no difference whose interval excludes 0" in page.words


def test_the_old_report_stays_whole_until_the_new_one_is(changed):
    folder = changed()
    before = write_report(folder).read_text()
    (folder / "classdiffusion/mia/images/02_1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"02_1\.png"):
        write_report(folder)
    assert (folder / "report.html").read_text() == before
    assert [path.name for path in folder.iterdir() if "partial" in path.name] == []


def test_a_torn_last_record_is_dropped_and_any_other_named(changed):
    folder = changed()
    path = folder / "base/rex/records.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"method": "ba')
    assert len(list(read_results(folder).records("base", "rex"))) == 6
    path.write_text('{"method": "ba\n' + whole)
    with pytest.raises(UserError, match=r"records\.jsonl, line 1 is not JSON"):
        write_report(folder)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: shutil.rmtree(folder), "is no folder"),
        (lambda folder: (folder / "table.json").unlink(), r"no table\.json in .*finished run"),
        (lambda folder: (folder / "settings.json").write_text("{"), r"settings\.json is not JSON"),
        (lambda folder: (folder / "subjects.json").write_text("{}"), "does not hold a JSON list"),
        (lambda folder: (folder / "table.json").write_text('{"metrics": []}'), "no metrics, rows or seeds"),
    ],
)
def test_what_is_no_results_folder_is_refused_before_anything_is_written(changed, spoil, words):
    folder = changed()
    (folder / "report.html").unlink(missing_ok=True)
    spoil(folder)
    with pytest.raises(UserError, match=words):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_the_command_names_the_mistake_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "scripts.report", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: no settings.json in") and done.stderr.count("\n") == 1


def test_the_command_writes_the_report(changed, capsys):
    from scripts.report import main

    folder = changed()
    main([str(folder)])
    assert (folder / "report.html").stat().st_size > 10_000
    assert str(folder / "report.html") in capsys.readouterr().out


def test_large_pictures_shrink_and_small_ones_keep_their_pixels(tmp_path):
    for side, shown in ((512, 256), (64, 64)):
        Image.new("RGB", (side, side // 2), (10, 200, 90)).save(tmp_path / "a.png")
        assert data_uri(tmp_path / "a.png", 256)[1] == (shown, shown // 2)


def test_the_plan_keeps_the_file_moderate(results):
    read = read_results(results)  # 2 subjects x 3 prompts x 3 methods = 18 cells
    plan = make_plan(read, 512, budget=18 * 256**2 * 2)
    assert (plan.side, plan.seeds, plan.prompts) == (256, 2, 3)
    plan = make_plan(read, 512, budget=18 * 192**2)
    assert (plan.side, plan.seeds, plan.prompts) == (192, 1, 3)
    plan = make_plan(read, 512, budget=12 * 128**2)
    assert (plan.side, plan.seeds, plan.prompts) == (128, 1, 2)
    assert make_plan(read, 64).side == 64


def test_open_subjects_and_prompts_are_spread():
    subjects = [{"name": name, "class": name[0]} for name in ("a1", "a2", "b1", "b2", "c1", "d1", "e1")]
    assert opened(subjects) == ["a1", "b1", "c1", "d1"]
    assert opened(subjects[:3]) == ["a1", "b1", "a2"]
    assert evenly(3, 25) == [0, 12, 24] and evenly(3, 2) == [0, 1] and evenly(1, 5) == [0]

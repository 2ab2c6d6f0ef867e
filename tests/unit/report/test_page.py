"""The report of a results folder: its numbers, images and curves, and what it says of missing parts."""

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
from utils.common.errors import UserError
from utils.report.charts import Curve, line_chart, scatter
from utils.report.curves import mean_line, smooth, thin
from utils.report.folder import read_results
from utils.report.page import write_report
from utils.report.prompts import prompt_scores, situation
from utils.report.samples import data_uri, evenly, make_plan, opened
from utils.report.words import best, label, written


class Reader(HTMLParser):
    """Tables as lists of rows of cells, each cell (tag, text, [exact numbers]); images; all text."""

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
        "Custom Diffusion and ClassDiffusion on 2 subjects of 2 classes, 3 prompts each, 2 images per "
        "prompt (seeds 0, 1): 36 images in all. The base model is data/toon/sd."
    ) in page.words
    assert "mean over subjects and 95 % bootstrap interval (2 subjects, 12 images per method)" in page.words


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


def test_every_image_is_embedded_and_described(page, results, html):
    # 3 prompts x 3 methods x 2 seeds of 2 subjects, and 2 real images of each
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


def test_a_sample_shows_the_image_of_its_method_prompt_and_seed(page, results):
    [image] = [i for i in page.images if i["alt"].startswith("Custom Diffusion, seed 1: a <new1> dog on the")]
    shown = Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
    wanted = Image.open(results / "custom_diffusion/rex/images/02_1.png")
    for one, other in zip(shown.getpixel((4, 4)), wanted.getpixel((4, 4)), strict=True):
        assert abs(one - other) <= 4, "JPEG"


def test_text_is_escaped_everywhere(page, html):
    assert "<b>bold</b>" not in html
    assert html.count("&lt;b&gt;bold&lt;/b&gt;") >= 2 * 2 * 3, "alt texts, grids and the heat table"
    assert "2 cores <AMX>" in page.words


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
    assert html.count('<svg class="chart" role="img"') == 3
    assert "Smoothed: running mean over 2 steps." in page.words


def test_smoothing_thinning_and_means_of_lines():
    assert smooth([1, 2, 6, 2], 3) == [1.5, 3, 10 / 3, 4]
    assert smooth([1, 2, 6], 1) == [1, 2, 6]
    points = [(x, x * x) for x in range(1, 401)]
    thinned = thin(points, 100)
    assert thinned[:2] == [(1, 1), (5, 25)] and thinned[-1] == (400, 160000) and len(thinned) == 101
    assert thin(points[:3]) == points[:3]
    assert mean_line([[(1, 2), (2, 4), (3, 9)], [(1, 4), (2, 8)]]) == [(1, 3), (2, 6)]


def test_a_line_is_drawn_to_scale_and_in_the_colours_of_the_page():
    curve = Curve("A & B", 1, [(0, 0), (50, 1), (100, float("nan"))], [[(0, 0.5), (100, 0.5)]])
    chart = line_chart("loss", [curve], "step", "y & z", 'says "x"')
    mean, member = (points(chart, f"loss-{name}") for name in ("mean-0", "member-0-1"))
    assert mean[0] == (member[0][0], pytest.approx(2 * member[0][1] - mean[1][1])), "0.5 lies half way to 1"
    assert mean[1][0] == pytest.approx((member[0][0] + member[1][0]) / 2), "50 half way to 100; nan not drawn"
    assert len(mean) == 2 and "y &amp; z" in chart and 'aria-label="says &quot;x&quot;"' in chart
    assert "stroke: var(--c1)" in chart and not re.search(r"#[0-9a-f]{6}\b", chart)
    assert line_chart("loss", [curve], "step", "y & z", 'says "x"') == chart, "the same bytes"


def points(chart: str, name: str) -> list[tuple[float, float]]:
    """The corners of the path in the group of this id."""
    path = re.search(rf'<g id="{name}">\s*<path d="([^"]*)"', chart)[1]
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path)]


def test_ids_of_charts_do_not_clash(html):
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids)) > 50
    assert set(re.findall(r'href="#([^"]*)"', html)) <= set(ids)


def test_methods_are_dots_between_likeness_and_prompts(changed):
    folder = changed()
    assert "Prompts against likeness" not in write_report(folder).read_text(), "DINO-I was not measured"
    table = json.loads((folder / "table.json").read_text())
    table["metrics"].append("dino_i")
    for row, mean in zip(table["rows"], (0.3, 0.5, 0.7), strict=True):
        row["metric"]["dino_i"] = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}
    (folder / "table.json").write_text(json.dumps(table))
    text = write_report(folder).read_text()
    assert "Custom Diffusion: DINO-I 0.500, Obeyed 0.348; Class" in text
    assert len(re.findall(r'id="trade-off-dot-\d"', text)) == 3
    x = [
        float(use) for use in re.findall(r'id="trade-off-dot-\d">.*?<use [^>]* x="([\d.]+)"', text, re.DOTALL)
    ]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1]) and x[1] > x[0]


def test_a_dot_without_intervals_has_no_cross():
    one = {"mean": 0.5, "low": None, "high": None}
    chart = scatter("s", {"A": (0, one, one)}, "x", "y", "d")
    assert chart.count("stroke-opacity: 0.6") == 0 and 'id="s-dot-0"' in chart


def test_numbers_and_names_as_readers_see_them():
    assert [written(0.2111), written(-0.00004), written(0.1, signed=True)] == ["0.211", "0.000", "+0.100"]
    assert [written(0.248, True), written(-0.5, True, True)] == ["24.8 %", "−50.0 pp"]
    assert [label("classdiffusion"), label("base"), label("my_own")] == [
        "ClassDiffusion",
        "Base model",
        "my own",
    ]


def test_images_from_elsewhere_are_counted_as_they_are(changed):
    folder = changed()
    table = json.loads((folder / "table.json").read_text())
    table["rows"] = [table["rows"][2] | {"method": "generated", "images": 7}]
    (folder / "table.json").write_text(json.dumps(table))
    words = Reader(write_report(folder).read_text()).words
    assert "Given images on 2 subjects of 2 classes, 3 prompts each: 7 images in all." in words
    assert "per prompt (" not in words


def test_the_base_is_said_to_be_a_reference_and_is_compared(page):
    assert "has never seen the subjects, and is not a candidate for bold" in page.words
    assert "takes no part" not in page.words


def test_a_run_without_judged_words_gets_clip_t_by_prompt(tmp_path):
    page = Reader(write_report(write_results(tmp_path, obeyed=False)).read_text())
    assert "No recogniser judged these images" in page.words
    assert not [caption for caption in page.tables if caption.startswith("Words obeyed")]
    rows = page.table("CLIP-T prompt by prompt")[1:]
    assert [cell[1] for cell in rows[1]] == ["a photo of a … wearing a hat", "0.250", "0.260", "0.270"]


def test_a_run_without_base_says_so_and_one_method_has_no_differences(tmp_path):
    page = Reader(write_report(write_results(tmp_path, methods=("classdiffusion",))).read_text())
    assert "The base model was not sampled in this run" in page.words
    assert "there are no differences to show" in page.words
    assert page.bold == [], "one method cannot be best"


def test_missing_logs_real_images_and_samples_are_said(changed):
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
    assert page.words.count("real images are no longer where the run had them") == 2
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
    assert page.bold == [] and "One subject gives no interval, so no difference is certain" in page.words
    assert "%" not in "".join(caption for caption in page.tables if caption.startswith("Paired"))
    assert "intervals over them" in page.words and "with 95" not in page.words


def test_the_old_report_stays_whole_until_the_new_one_is(changed):
    folder = changed()
    before = write_report(folder).read_text()
    (folder / "classdiffusion/mia/images/02_1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"02_1\.png"):
        write_report(folder)
    assert (folder / "report.html").read_text() == before
    assert [path.name for path in folder.iterdir() if "partial" in path.name] == []


def test_a_torn_last_record_is_dropped_and_any_other_named(changed):
    folder = changed()
    path = folder / "base/rex/records.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"method": "ba')
    assert len(read_results(folder).records("base", "rex")) == 6
    path.write_text('{"method": "ba\n' + whole)
    with pytest.raises(UserError, match=r"records\.jsonl is not JSON lines: line 1 is not an object"):
        write_report(folder)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: shutil.rmtree(folder), "is not a folder"),
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


def test_large_images_shrink_and_small_ones_keep_their_pixels(tmp_path):
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

"""The page in headless Chromium: from an empty page to drawn images of one's own concept on toon.

Slow, and skipped where gradio (requirements-app.txt), playwright or a Chromium is missing: `pip install
playwright`, and on Debian and Ubuntu `apt-get install chromium`.
"""

import json
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from utils.bases.registry import REPOSITORY
from utils.concepts.formats import read_concept

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
MISSING = [name for name in ("gradio", "playwright") if find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING) or BROWSER is None, reason=f"no {MISSING or 'Chromium'}"),
]
MINUTES = 60_000  # in playwright's milliseconds
LONG = 4000  # steps: does not end while a test runs


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class App:
    """`python -m scripts.app` on a folder of its own."""

    def __init__(self, folder: Path):
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "scripts.app", f"--folder={self.folder}", f"--port={self.port}"]
        self.process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        assert line == f"the page is at {self.url}; Ctrl-C ends it\n", line

    def end(self, how: int = signal.SIGINT) -> str:
        """What it printed since it started."""
        self.process.send_signal(how)
        return self.process.communicate(timeout=120)[0]


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    app = App(tmp_path / "jobs")
    yield app
    if app.process.poll() is None:
        app.end()


@pytest.fixture
def visit(app: App) -> Iterator:
    """visit(width=1280, scheme="light"): the page in a new window; at the end, no error, no stranger."""
    from playwright.sync_api import sync_playwright

    requests, errors = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])

        def open_page(width: int = 1280, scheme: str = "light"):
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page = context.new_page()
            page.set_default_timeout(2 * MINUTES)
            page.on("request", lambda request: requests.append(request.url))
            page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
            page.goto(app.url)
            page.wait_for_selector("#training .empty, #training .state")
            return page

        yield open_page
        browser.close()
    assert not [url for url in requests if not url.startswith((app.url, "data:", "blob:"))]
    assert [error for error in errors if "net::ERR_" not in error] == []  # the app was killed


def begin(page, steps: int) -> None:
    page.click("#example")
    page.wait_for_selector(".thumbnails img")
    page.fill("#steps input", str(steps))
    page.keyboard.press("Tab")
    page.click("#train")


def says(page, where: str, what: str) -> None:
    """Waits until the part of the page says it."""
    has = "([where, what]) => document.querySelector(where)?.innerText.includes(what)"
    page.wait_for_function(has, arg=[where, what], timeout=5 * MINUTES)


def test_from_an_empty_page_to_images_of_ones_own_concept(app: App, visit, tmp_path: Path):
    page = visit()
    assert page.inner_text("#training .empty").startswith("Nothing is trained yet: add images")
    page.click("#train")
    says(page, "#train-message", "no images: drop 3 to 6 images of one thing")
    begin(page, 12)
    says(page, "#training .state", "Training, step")
    says(page, "#training .state", "Trained, 12 steps")
    assert page.locator("#training svg.chart").count() == 2
    assert page.locator("#training .sets figure").count() == 4
    assert page.input_value("#prompts textarea").startswith("a photo of a <new1> dog\n")

    page.fill("#prompts textarea", "a <new1> dog in the snow\na dog")
    page.click("#draw")
    says(page, "#grid", "4 of 4 images")
    says(page, "#draw-message", "“a dog” lacks <new1>")
    widths = page.eval_on_selector_all("#grid img", "images => images.map(each => each.naturalWidth)")
    assert widths == [64] * 4
    (drawn,) = (app.folder / "dog-1" / "drawn").iterdir()
    with Image.open(drawn / "a-new1-dog-in-the-snow_0.png") as image:
        assert image.size == (64, 64) and image.info["prompt"] == "a <new1> dog in the snow"
        assert len(image.getcolors(4096)) > 500, "hardly an image"

    page.click("#take-concept")
    with page.expect_download() as download:
        page.click("#file a")
    with zipfile.ZipFile(download.value.path()) as archive:
        archive.extractall(tmp_path)
    assert list(read_concept(tmp_path / "dog-1").rows) == ["<new1>"]
    page.fill("#prompts textarea", "a <new2> dog")
    page.click("#draw")
    says(page, "#draw-message", "prompt mentions <new2>, known are: <new1>")


def test_one_training_at_a_time_stopped_resumed_and_the_app_killed(app: App, visit):
    page = visit()
    begin(page, LONG)
    says(page, "#training .state", "Training, step")
    second = visit()
    says(second, "#training .state", "Training, step")  # the page can be closed and opened again
    begin(second, 10)
    says(second, "#train-message", f"of {LONG}), and only one can train at a time")
    page.close()
    second.click("#stop")
    says(second, "#training .state", "Resume goes on from step")
    second.click("#resume")
    says(second, "#training .state", "Training, step")
    app.end(signal.SIGKILL)
    app.start()
    third = visit()
    says(third, "#training .state", "Resume goes on from step")
    third.click("#resume")
    says(third, "#training .state", "Training, step")
    assert "dog-1 saves and stops" in app.end()
    log = [json.loads(line) for line in (app.folder / "dog-1/concept/log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == list(range(1, len(log) + 1))


def test_bad_input_is_a_message_and_nothing_is_written(app: App, visit, tmp_path: Path):
    page = visit()
    (tmp_path / "text.png").write_text("I am no image")
    page.set_input_files("#uploads input[type=file]", tmp_path / "text.png")
    says(page, ".columns", "cannot read image text.png")
    page.fill("#class input, #class textarea", "dog")
    page.click("#train")
    says(page, "#train-message", "cannot read image text.png")
    page.click("#example")
    page.wait_for_selector(".thumbnails img")
    page.fill("#class input, #class textarea", "")
    page.click("#train")
    says(page, "#train-message", "no class word")
    assert [path.name for path in app.folder.iterdir()] == [".run.lock"]


def test_the_page_fits_its_window_and_follows_the_dark(visit):
    papers = {"light": "rgb(255, 255, 255)", "dark": "rgb(15, 15, 15)"}
    for width in (390, 1280):
        for scheme, paper in papers.items():
            page = visit(width, scheme)
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == paper

"""The report in a real browser, headless Chromium: tables, images, no console error, no sideways scrolling.

Skipped where no Chromium is installed; on Debian and Ubuntu `apt-get install chromium` brings it.
"""

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.results_folder import write_results
from utils.report.page import write_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chromium-headless-shell")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
PHONE, DESKTOP = 390, 1280
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser found: none of {', '.join(NAMES)}")

# A page that loads the report at several widths and writes what it measures there into itself. A frame has
# exactly the width it is given, which a headless window, with its smallest size, has not.
FRAMES = """<!doctype html><link rel="icon" href="data:,">
{frames}<pre></pre>
<script>
const measure = frame => {{
  const page = frame.contentDocument, root = page.documentElement;
  const images = [...page.images], tables = [...page.querySelectorAll("table")];
  const requests = frame.contentWindow.performance.getEntriesByType("resource");
  return {{
    width: root.clientWidth,
    content: root.scrollWidth,
    images: images.length,
    empty: images.filter(image => !(image.complete && image.naturalWidth > 0)).map(image => image.alt),
    shown: images.filter(image => image.getBoundingClientRect().width > 40).length,
    captions: tables.map(table => table.caption.textContent),
    scores: page.querySelector("#scores table").rows.length,
    charts: page.querySelectorAll("svg.chart g[id*='-mean-']").length,
    background: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    requests: requests.map(entry => entry.name).filter(name => !name.startsWith("data:")),
  }};
}};
addEventListener("load", () => {{
  const found = [...document.querySelectorAll("iframe")].map(measure);
  document.querySelector("pre").textContent = JSON.stringify(found);
}});
</script>"""


@dataclass
class Visit:
    measured: dict[int, dict]  # width -> what was found there
    errors: list[str]


def visit(page: Path, widths: tuple[int, ...], folder: Path, *flags: str) -> Visit:
    """Opens the page in frames of these widths; no request leaves the machine."""
    harness = folder / "frames.html"
    style = "height:900px;border:0;display:block"
    frames = [f'<iframe src="{page.as_uri()}" style="width:{width}px;{style}"></iframe>' for width in widths]
    harness.write_text(FRAMES.format(frames="\n".join(frames)))
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--allow-file-access-from-files", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += ["--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}"]
    command += [*flags, "--virtual-time-budget=20000", "--dump-dom", harness.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    found = re.search(r"<pre>(\[.*?\])</pre>", done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Visit(dict(zip(widths, json.loads(html.unescape(found[1])), strict=True)), errors)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    return write_report(write_results(tmp_path_factory.mktemp("results")))


@pytest.fixture(scope="module")
def seen(report, tmp_path_factory) -> Visit:
    return visit(report, (PHONE, DESKTOP), tmp_path_factory.mktemp("browser"))


def test_the_report_opens_without_a_console_error_or_a_request(seen):
    assert seen.errors == []
    assert [found["requests"] for found in seen.measured.values()] == [[], []]


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_tables_and_images_are_there_and_the_page_does_not_scroll_sideways(seen, width):
    found = seen.measured[width]
    assert (found["width"], found["content"]) == (width, width)
    assert found["images"] == 40 and found["empty"] == []
    assert found["shown"] == 40, "both subjects stand open, and three prompts of each are all there are"
    assert found["scores"] == 4 and found["charts"] == 2 * 3
    assert len(found["captions"]) == len(set(found["captions"])) >= 9
    assert found["background"] == "rgb(255, 255, 255)"


def test_a_broken_page_would_be_noticed_and_the_dark_is_followed(report, tmp_path):
    spoilt = tmp_path / "spoilt.html"
    text = report.read_text().replace("data:image/jpeg;base64,", "data:image/jpeg;base64,AAAA", 1)
    broken = '<div style="width:1500px">wide</div><script>console.error("lost")</script>'
    spoilt.write_text(text.replace("</main>", broken + "</main>"))
    dark = visit(spoilt, (DESKTOP,), tmp_path, "--blink-settings=preferredColorScheme=0")
    found = dark.measured[DESKTOP]
    assert len(found["empty"]) == 1
    assert found["content"] > DESKTOP
    assert len(dark.errors) == 1 and "lost" in dark.errors[0]
    assert found["background"] == "rgb(22, 23, 26)"

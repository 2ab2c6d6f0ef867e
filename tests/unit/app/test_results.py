"""What comes of a trained job: thumbnails, images of prompts, downloads; and the page's parts of HTML."""

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from scripts import export
from utils.app import views
from utils.app.downloads import offers, pack
from utils.app.drawing import Painter, Request, request_of
from utils.app.form import Form
from utils.app.jobs import Job, list_jobs, new_folder, read_job, read_jobs, save_job
from utils.app.trainer import STOPPED, Status, Trainer
from utils.app.uploads import preview
from utils.common.errors import UserError
from utils.concepts.formats import read_concept
from utils.sampling.prompts import without_token


@pytest.fixture
def job(
    tmp_path: Path, tiny_base: Path, train: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Job:
    """A tiny concept, trained for two steps, once for all tests."""
    job = Job(tmp_path / "dog-1", Form("dog", base=str(tiny_base)), ("--validation_prompt=a <new1> dog",), 2)
    save_job(job)
    trained = tmp_path_factory.getbasetemp() / "trained-for-the-app"
    if not trained.exists():
        train(trained)
    shutil.copytree(trained, job.concept)
    return job


def few_steps(request: Request) -> Request:
    settings = request.drawing.settings | {"num_inference_steps": 3}
    return replace(request, drawing=replace(request.drawing, settings=settings))


def test_a_job_is_read_back_and_listed(job: Job, tmp_path: Path):
    assert read_job(job.folder) == job
    (tmp_path / "cat-1" / "images").mkdir(parents=True)  # a kill before job.json
    assert list_jobs(tmp_path) == [job]
    assert new_folder(tmp_path, "Cat").name == "cat-2"


GOOD = {"form": {"cls": "dog"}, "flags": [], "steps": 2}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"form": {"colour": 1}}',
        *[
            json.dumps(GOOD | change).encode()
            for change in (
                {"form": {"cls": 3}},
                {"form": {"cls": "dog", "method": "alchemy"}},
                {"form": {"cls": "dog", "seed": "x"}},
                {"flags": [1]},
                {"flags": 1},
                {"steps": "many"},
                {"steps": None},
            )
        ],
    ],
)
def test_a_damaged_job_is_named_and_the_others_are_shown(content: bytes, job: Job, tmp_path: Path):
    assert read_job(job.folder) == job
    (tmp_path / "cat-2").mkdir()
    (tmp_path / "cat-2" / "job.json").write_bytes(content)
    jobs, (line,) = read_jobs(tmp_path)
    assert jobs == [job] == list_jobs(tmp_path)
    assert (
        line
        == f"{tmp_path / 'cat-2' / 'job.json'} is not a job of this page: bring it back, or remove its folder"
    )
    trainer = Trainer(tmp_path)
    page = views.training(job, trainer.status(job), [line])
    assert "left out: " in page and "cat-2/job.json is not a job" in page and "Trained, 2 steps" in page
    assert trainer.running() is None


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda job: (job.concept / "log.jsonl").write_text("nonsense\n"), "log.jsonl is not JSON lines"),
        (lambda job: (job.concept / "log.jsonl").write_text('{"loss": 1}\n'), "a line without a step"),
        (lambda job: (job.concept / "new1.safetensors").write_bytes(b"x"), "cannot read "),
    ],
)
def test_a_job_with_a_damaged_file_says_so(damage: Callable, said: str, job: Job, tmp_path: Path):
    damage(job)
    status = Trainer(tmp_path).status(job)
    page = views.training(job, status) + views.downloads(offers(job))
    assert said in page.replace("&lt;", "<"), page


def test_folders_that_are_no_checkpoints_or_samples_are_passed_over(job: Job):
    (job.concept / "checkpoint-best").mkdir()
    (job.concept / "validation" / "step-last").mkdir(parents=True)
    (job.concept / "validation" / "step-last" / "grid.png").touch()
    assert job.saved_step() == 2 and job.samples() == []


def test_prompts_are_drawn_row_by_row_with_their_settings(job: Job):
    request = request_of(job, "a <new1> dog\n\n a dog \na <new1> dog", 2, 5)
    assert (request.prompts, request.seeds) == (["a <new1> dog", "a dog"], range(5, 7))
    assert request.notes == ["“a dog” lacks <new1>: it may show the class, not your subject"]
    assert not (job.folder / "drawn").exists(), "preparing writes nothing"
    painter = Painter()
    files = list(painter.draw(few_steps(request)))
    assert [file.name for file in files] == [
        "a-new1-dog_5.png",
        "a-new1-dog_6.png",
        "a-dog_5.png",
        "a-dog_6.png",
    ]
    with Image.open(files[1]) as image:
        assert (image.info["prompt"], image.info["seed"]) == ("a <new1> dog", "6")
    assert (request.folder / "grid.png").is_file() and request.folder == job.folder / "drawn" / "1"
    again = request_of(job, "a <new1> dog", 1, 6)
    assert again.folder == job.folder / "drawn" / "2"
    (file,) = painter.draw(few_steps(again))  # with the pipeline that was kept
    with Image.open(file) as one, Image.open(files[1]) as other:
        difference = max(abs(a - b) for a, b in zip(one.tobytes(), other.tobytes(), strict=True))
    assert difference <= 2, "an image depends on its prompt and seed alone"


@pytest.mark.parametrize(
    ("text", "count", "seed", "said"),
    [
        (" \n", 1, 0, r"no prompt: write one a line, e\.g\. a <new1> dog in the snow"),
        ("a <new2> dog", 1, 0, "prompt mentions <new2>, known are: <new1>"),
        ("a <new1> dog", 65, 0, "65 x 1 images: ask for 1 to 64"),
        ("a <new1> dog", 1, -1, "--seed -1"),
        ("x" * 1001, 1, 0, "has 1,001 characters: give at most 1,000"),
    ],
)
def test_prompts_that_inference_refuses_are_refused_with_nothing_written(job: Job, text, count, seed, said):
    with pytest.raises(UserError, match=said):
        request_of(job, text, count, seed)
    assert not (job.folder / "drawn").exists()


def test_an_unfinished_training_can_neither_be_drawn_nor_taken_away(job: Job, tmp_path: Path):
    (job.concept / "training_config.json").unlink()
    with pytest.raises(UserError, match="dog-1 is not trained yet"):
        request_of(job, "a <new1> dog", 1, 0)
    with pytest.raises(UserError, match="dog-1 is not trained yet"):
        pack(job, "concept", tmp_path)
    assert offers(job) == {}


def test_tokens_are_seen_in_any_case(job: Job):
    assert without_token(["A <NEW1> dog"], [read_concept(job.concept)]) == []


def test_the_downloads_are_the_concept_and_what_export_writes(job: Job, tmp_path: Path):
    out = tmp_path / "downloads"
    out.mkdir()
    reasons = offers(job)
    assert reasons["concept"] is reasons["lora"] is None
    assert reasons["embedding"].startswith("dog-1 has K/V, which an embedding would leave out")
    with pytest.raises(UserError, match="has K/V"):
        pack(job, "embedding", out)
    for layout in ("concept", "lora"):
        with zipfile.ZipFile(pack(job, layout, out)) as archive:
            archive.extractall(out)
    taken, own = read_concept(out / "dog-1"), read_concept(job.concept)
    assert taken.weights.keys() == own.weights.keys() and taken.classes == ("dog",)
    assert all((taken.weights[name] == value).all() for name, value in own.weights.items())

    export.main([str(job.concept), str(tmp_path / "exported"), "--format=lora"])
    expected = load_file(tmp_path / "exported" / "concept_lora.safetensors")
    found = load_file(out / "dog-1_lora" / "dog-1_lora.safetensors")
    assert found.keys() == expected.keys()
    assert all((found[name] == value).all() for name, value in expected.items())
    embedding = load_file(out / "dog-1_lora" / "dog1.safetensors")["<new1>"]
    assert (embedding == own.rows["<new1>"]).all()


def test_a_preview_shows_every_image_and_says_what_it_leaves_out(
    pictures: Callable[..., Path], tmp_path: Path
):
    folder = pictures("dog", 2)
    (tmp_path / "notes.txt").write_text("no image")
    same_name = tmp_path / "0.png"
    Image.new("RGB", (300, 200)).save(same_name)
    seen = preview([*sorted(folder.iterdir()), same_name, tmp_path / "notes.txt"], "sd15")
    assert [(each.name, each.width, each.height) for each in seen.thumbnails] == [
        ("0-2.png", 300, 200),
        ("0.png", 24, 20),
        ("1.png", 24, 20),
    ]
    assert seen.notes == ["notes.txt is left out: it is not an image"]
    (tmp_path / "1.txt").write_text("a dog asleep")
    captioned = preview([*sorted(folder.iterdir()), tmp_path / "1.txt"], "sd15")
    assert captioned.notes[0] == "1 of 2 images have captions of their own"
    assert preview([same_name], "sd15").notes[0].startswith("1 image will do, but with 3 to 6")


def test_what_a_user_wrote_is_escaped(job: Job):
    evil = "<script>alert(1)</script>"
    status = Status(STOPPED, 1, 2, 0, evil)
    assert evil not in views.message(evil) and "&lt;script&gt;" in views.message(evil)
    html = views.training(Job(job.folder, Form(evil), (f"--validation_prompt={evil}",), 2), status)
    assert evil not in html and html.count("&lt;script&gt;") >= 2
    assert "Nothing is trained yet" in views.training(None, None)


def test_the_grid_leaves_places_open_until_their_images_are_drawn(job: Job):
    request = request_of(job, "a <new1> dog\na dog", 2, 0)
    first = Image.new("RGB", (8, 8), "red")
    path = job.folder / "first.png"
    first.save(path)
    html = views.grid(request, [path])
    assert html.count("<img") == 1 and html.count('class="open"') == 3
    assert "1 of 4 images" in html and 'class="pixels"' in html
    assert html.index("a &lt;new1&gt; dog") < html.index("seed 1") < html.index("a dog")

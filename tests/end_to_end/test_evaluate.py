"""scripts/evaluate.py on tiny models: tables, kills, processes, mistakes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image, ImageChops, ImageStat

import train_classdiffusion
import utils.evaluation.evaluation
from scripts import evaluate
from tests.faults.commands import call
from tests.tiny_scorers import write_scorers
from utils.bases.registry import BASES, base_row
from utils.common import cluster
from utils.common.errors import UserError
from utils.common.files import remove
from utils.common.images import open_image, save_png
from utils.evaluation import plan, runs, training_process
from utils.evaluation.evaluation import models_of, settings_of
from utils.evaluation.folder import is_scored, read_image_records
from utils.evaluation.sources import base_of_images, source_of
from utils.report.page import write_report
from utils.scores.encoders import DinoEncoder
from utils.scores.endpoint import Endpoint
from utils.scores.judges import KINDS, Kind
from utils.scores.table import SCORES, Score
from utils.training.lock import LOCK_FILE, RunLock, holder

REPOSITORY = Path(__file__).parents[2]
TRAINING = "--max_train_steps=2 --learning_rate=1e-3 --checkpointing_steps=1"
SAMPLING = ["--num_images=2", "--num_class_images=2", "--num_inference_steps=2", "--batch_size=2"]
METHODS = "base,classdiffusion"
FOLDERS = [f"{method}/{name}" for method in ("base", "classdiffusion") for name in ("cat2", "dog")]


@pytest.fixture(scope="module")
def scorers(tmp_path_factory) -> dict[str, str]:
    return write_scorers(tmp_path_factory.mktemp("scorers"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, pictures) -> Path:
    """A DreamBooth set of two subjects, two prompts each."""
    folder = tmp_path_factory.mktemp("dreambooth")
    for name in ("dog", "cat2"):
        shutil.copytree(pictures(name), folder / name)
    prompts = ["'a {0} {1} on the beach'.format(a, b),", "'a {0} {1} wearing headphones'.format(a, b)"]
    section = "\n\nprompt_list = [\n" + "\n".join(prompts) + "\n]\n\n"
    text = "Classes\n\nsubject_name,class\ncat2,cat\ndog,dog\n\nPrompts\n\nObject Prompts" + section
    (folder / "prompts_and_classes.txt").write_text(text + "Live Subject Prompts" + section)
    return folder


@pytest.fixture(scope="module")
def flags(dataset, tiny_base, scorers):
    """flags(output_dir, **changes): the command line of 2 subjects and 2 methods."""

    def command(output_dir: Path, **changes: object) -> list[str]:
        merged = {
            "dataset": "dreambooth",  # after the command
            "data_dir": dataset,
            "base": tiny_base,
            "methods": METHODS,
            "train_flags": f"--resolution=16 {TRAINING}",
            **scorers,
            "output_dir": output_dir,
        } | changes
        given = [f"--{name}={value}" for name, value in merged.items() if value is not None]
        (named,) = [each for each in given if each.startswith("--dataset=")] or [""]
        rest = [each for each in given if each != named]
        return ["dataset", *filter(None, [named.removeprefix("--dataset=")]), *SAMPLING, *rest]

    return command


def environment() -> dict[str, str]:
    """As many threads as here: another number rounds sums otherwise, and an image's pixel with them."""
    return os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "ACCELERATE_USE_CPU": "true"}


@pytest.fixture
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    forget_processes()


@pytest.fixture(scope="module")
def unbroken(flags, tmp_path_factory) -> Path:
    """The results of a run in one go. The trainings, too, run in this process: importing takes longest."""
    folder = tmp_path_factory.mktemp("unbroken") / "results"

    def train_here(command: list[str], *_: object) -> int:
        forget_processes()
        train_classdiffusion.main(command[2:])
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setattr(training_process, "run_child", train_here)
        source = source_of(evaluate.parse(flags(folder)), evaluate.benchmarks())
        for subject in source.subjects:
            concept = folder / "classdiffusion" / subject.name / "concept"
            command = source.flags("classdiffusion")
            how = (subject, "classdiffusion", source.base.path, command, concept, torch.device("cpu"))
            training_process.train(*how)
        forget_processes()
        evaluate.main(flags(folder))
    return folder


def forget_processes() -> None:
    """accelerate keeps its settings for the life of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def table_of(folder: Path) -> dict:
    return json.loads((folder / "table.json").read_text())


def numbers(table: object) -> list[float]:
    """Every number of a table, in order."""
    if isinstance(table, dict):
        return [number for key in table for number in numbers(table[key])]
    if isinstance(table, list):
        return [number for each in table for number in numbers(each)]
    return [table] if isinstance(table, int | float) else []


def assert_same_table(folder: Path, other: Path) -> None:
    ours, theirs = table_of(folder), table_of(other)
    assert len(numbers(ours)) > 60 and numbers(ours) == pytest.approx(numbers(theirs), abs=2e-6)
    assert (ours["metrics"], ours["models"]) == (theirs["metrics"], theirs["models"])


def test_the_folder_holds_all_that_the_table_rests_on(unbroken, scorers, dataset):
    table, settings = table_of(unbroken), json.loads((unbroken / "settings.json").read_text())
    assert table["metrics"] == ["clip_t", "blip_t", "clip_i", "dino_i", "pres", "div"]
    assert [(r["method"], r["subjects"], r["images"]) for r in table["rows"]] == [
        ("base", 2, 8),
        ("classdiffusion", 2, 8),
    ]
    assert table["seeds"] == settings["seeds"] == [0, 1] and table["models"]["div"] == scorers["dino"]
    assert settings["versions"] == table["versions"] and "torch" in table["versions"]
    subjects = json.loads((unbroken / "subjects.json").read_text())
    assert [(s["name"], s["class"], s["live"]) for s in subjects] == [
        ("cat2", "cat", True),
        ("dog", "dog", True),
    ]
    assert subjects[1]["prompts"][0] == "a <new1> dog on the beach"
    assert subjects[1]["pictures"] == [str(dataset / "dog" / f"{i}.png") for i in range(3)]
    for name in FOLDERS:
        names = {path.name for path in (unbroken / name / "images").iterdir()}
        assert names == {f"0{prompt}_{seed}.png" for prompt in (0, 1) for seed in (0, 1)}
        records = [json.loads(line) for line in (unbroken / name / "records.jsonl").open()]
        assert len(records) == 4 and all((unbroken / record["image"]).is_file() for record in records)
        assert (unbroken / name / "concept" / "log.jsonl").is_file() == name.startswith("classdiffusion")
    base, personal = (
        json.loads((unbroken / f"{m}/dog/records.jsonl").open().readline()) for m in METHODS.split(",")
    )
    assert (base["prompt"], personal["prompt"]) == ("a dog on the beach", "a <new1> dog on the beach")
    assert base["text"] == personal["text"] == "a dog on the beach"
    assert base["clip_i"] != personal["clip_i"], "the concept has an effect"


def test_table_and_report_are_written(unbroken):
    text = (unbroken / "table.md").read_text()
    for row in table_of(unbroken)["rows"]:
        found = row["metric"]["dino_i"]
        assert f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]" in text
    page = (unbroken / "report.html").read_text()
    assert "classdiffusion" in page.lower() and "data:image/" in page


def test_a_second_run_makes_nothing_again(unbroken, flags, tmp_path, monkeypatch, on_the_cpu):
    shutil.copytree(unbroken, tmp_path / "results")
    (tmp_path / "results" / "table.json").unlink()
    for name in ("train", "draw", "load_pipeline", "score_subject"):
        monkeypatch.setattr(runs, name, None)
    evaluate.main(flags(tmp_path / "results"))
    assert_same_table(tmp_path / "results", unbroken)


class Light:
    """A judge that came after the run: how light an image is, in [0, 1]."""

    model_id = "a light meter"

    def __init__(self, *_: object):
        pass

    def lightness(self, images: list[Image.Image]) -> torch.Tensor:
        return torch.tensor([ImageStat.Stat(image.convert("L")).mean[0] / 255 for image in images])


def test_a_judge_that_is_added_scores_an_earlier_folder_and_changes_nothing_else_in_it(
    unbroken, flags, tmp_path, monkeypatch, on_the_cpu
):
    """Two rows, of a judge and of its score; the folder is one that was finished without them."""
    results = shutil.copytree(unbroken, tmp_path / "results")
    before = {
        name: [json.loads(line) for line in (results / name / "records.jsonl").open()] for name in FOLDERS
    }
    light = Score(
        *("lightness", "Lightness", 0, "Mean grey."),
        judge="light",
        of_images=lambda images: images.model("light").lightness(images.opened),
    )
    monkeypatch.setitem(SCORES, "lightness", light)
    monkeypatch.setitem(KINDS, "light", Kind("light", "a light meter", Light, lambda *_: None))
    page = write_report(results)  # readable before it is scored
    assert "Lightness" not in page.read_text()
    evaluate.main(flags(results))  # this base has no such judge: the run is as it was
    assert table_of(results) == table_of(unbroken)

    monkeypatch.setitem(BASES["sd15"].judges, "light", "a light meter")  # a base of no row has sd15's
    for name in ("train", "draw", "load_pipeline"):
        monkeypatch.setattr(runs, name, None)
    evaluate.main(flags(results))
    table = table_of(results)
    assert table["metrics"] == [*table_of(unbroken)["metrics"], "lightness"]
    assert table["models"]["lightness"] == "a light meter"
    for ours, theirs in zip(table["per_subject"], table_of(unbroken)["per_subject"], strict=True):
        assert ours["metric"].items() >= theirs["metric"].items()
        folder = results / ours["method"] / ours["subject"] / "images"
        values = [ImageStat.Stat(open_image(path).convert("L")).mean[0] / 255 for path in folder.iterdir()]
        assert ours["metric"]["lightness"] == pytest.approx(sum(values) / len(values), abs=1e-6)
    for name, records in before.items():
        after = read_image_records(results / name / "records.jsonl")
        assert [{key: each[key] for key in each if key != "lightness"} for each in after] == records
    assert "Lightness" in write_report(results).read_text()


def test_drift_is_added_to_an_earlier_folder_and_is_that_of_its_definition(
    unbroken, flags, scorers, tmp_path, on_the_cpu
):
    results = shutil.copytree(unbroken, tmp_path / "results")
    dino = DinoEncoder(scorers["dino"], "cpu")
    evaluate.main(flags(results, dinov2=scorers["dino"]))
    table = table_of(results)
    assert table["metrics"] == ["clip_t", "blip_t", "clip_i", "dino_i", "pres", "drift", "div"]
    assert table["models"]["drift"] == scorers["dino"]
    assert len(list((results / "drift").iterdir())) == 12, "the base's, once for all"
    rows = {(row["subject"], row["method"]): row["metric"] for row in table["per_subject"]}
    for subject in ("dog", "cat2"):
        own = sorted((results / "classdiffusion" / subject / "drift").iterdir())
        pairs = [
            dino.image_features([open_image(path), open_image(results / "drift" / path.name)]) for path in own
        ]
        expected = sum((1 - float(tuned @ base)) / 2 for tuned, base in pairs) / 12
        assert rows[subject, "classdiffusion"]["drift"] == pytest.approx(expected, abs=1e-6) and expected > 0
        assert rows[subject, "base"]["drift"] == pytest.approx(0, abs=1e-6)


def test_what_is_sent_to_another_machine_is_said_before_and_in_the_report(
    unbroken, flags, tmp_path, monkeypatch, capsys, on_the_cpu
):
    results = shutil.copytree(unbroken, tmp_path / "results")
    where = "eyes at https://example.org/v1, to which each image is sent, with its prompt and up to three"
    sent = []

    def post(self, body: bytes) -> str:
        sent.append(json.loads(body)["messages"][0]["content"])
        return '{"grade": 3}'

    monkeypatch.setattr(Endpoint, "_post", post)
    evaluate.main(flags(results))
    assert not sent, "nothing is sent unless it is asked for"
    evaluate.main([*flags(results, vlm="https://example.org/v1#eyes"), "--dry_run"])
    assert not sent and f"sent to another machine: {where}" in capsys.readouterr().out
    evaluate.main(flags(results, vlm="https://example.org/v1#eyes"))
    assert len(sent) == 16 * 2 * 3, "images, questions, runs"
    assert table_of(results)["rows"][1]["metric"]["vlm_concept"]["mean"] == 3
    assert where in (results / "table.md").read_text() and where in (results / "report.html").read_text()


def test_a_killed_run_goes_on_and_gives_the_same_table(unbroken, flags, tmp_path, on_the_cpu):
    folder = tmp_path / "results"
    command = [sys.executable, "-m", "scripts.evaluate", *flags(folder)]
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment(), stdout=subprocess.DEVNULL)
    drawn = folder / "base" / "dog" / "images"
    while process.poll() is None and not list(drawn.glob("*.png")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "table.json").exists()
    # What the kill might have left: a record that is half there, a training with a checkpoint, no concept.
    records = folder / "base" / "cat2" / "records.jsonl"
    lines = records.read_text().splitlines(keepends=True)
    records.write_text("".join(lines[:1]) + lines[1][:9])
    (folder / "base" / "cat2" / "scores.json").unlink()
    shutil.copytree(unbroken / "classdiffusion" / "cat2" / "concept", folder / "classdiffusion/cat2/concept")
    shutil.copytree(unbroken / "classdiffusion" / "dog" / "concept", folder / "classdiffusion/dog/concept")
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("base/*/images/*.png")}
    evaluate.main(flags(folder))
    assert kept and all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert_same_table(folder, unbroken)


def test_two_processes_give_the_table_of_one(unbroken, flags, tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(unbroken / "classdiffusion" / "dog" / "concept", folder / "classdiffusion/dog/concept")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "scripts.evaluate", *flags(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    jobs = re.findall(r"\[(\d)/4\] (\w+), (\w+)", done.stdout)
    assert sorted(jobs) == [
        ("1", "cat2", "base"),
        ("2", "dog", "base"),
        ("3", "cat2", "classdiffusion"),
        ("4", "dog", "classdiffusion"),
    ]
    assert done.stdout.count("the table and all behind it") == 1
    assert_same_table(folder, unbroken)


@pytest.mark.slow
def test_jobs_that_are_killed_and_a_command_that_is_are_taken_up_by_the_same_command(
    unbroken, flags, tmp_path, monkeypatch, capsys, on_the_cpu
):
    """submitit's local executor: first a job is killed, then the command while a job is at work."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    monkeypatch.setattr(cluster, "POLL", 0.1)
    results = shutil.copytree(unbroken, tmp_path / "results")
    for name in ("base", "table.json"):
        remove(results / name)
    command, first = [*flags(results), "--executor=local"], results / "base" / "cat2"

    def kill_job() -> None:
        while not (found := holder(first)):
            time.sleep(0.02)
        os.kill(found.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_job)
    killer.start()
    with pytest.raises(
        UserError, match="1 of 2 jobs ended before they were done, e.g. base/cat2; their logs"
    ):
        evaluate.main(command)
    killer.join()
    assert is_scored(results / "base" / "dog", []) and not is_scored(first, [])
    assert "base/cat2: not done, see" in capsys.readouterr().out

    process = subprocess.Popen([sys.executable, "-m", "scripts.evaluate", *command], cwd=REPOSITORY)
    while not holder(first):
        time.sleep(0.02)
    process.kill()
    process.wait()
    evaluate.main(command)
    assert_same_table(results, unbroken)


def test_a_folder_that_is_no_concept_is_one_line_and_exit_2(tmp_path):
    end = call(evaluate.main, ["concept", str(tmp_path), f"--output_dir={tmp_path / 'out'}"])
    assert end.code == 2 and not (tmp_path / "out").exists()
    assert end.stderr == (
        f"error: {tmp_path} holds no training_config.json; give a folder of train_classdiffusion.py\n"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": None}, "nothing to evaluate: name a benchmark, a concept's folder"),
        ({"concept": "ckpt/dog"}, "unknown flag --concept=ckpt/dog; see --help"),
        ({"dataset": "imagenet"}, "unknown benchmark imagenet; choose one of toon, dreambooth"),
        ({"dataset": "toon"}, "--data_dir has no effect on benchmark toon"),
        ({"data_dir": None}, "benchmark dreambooth needs --data_dir"),
        ({"data_dir": "{tmp}"}, "no prompts_and_classes.txt in"),
        ({"subjects": "cat2,rex"}, "no subject rex; it has cat2, dog"),
        ({"methods": "base,lora"}, "unknown method 'lora'"),
        ({"methods": "base,base"}, "repeats one"),
        ({"metrics": "clip_t,fid"}, "unknown metric 'fid'; choose from clip_t, blip_t"),
        ({"metrics": "clip_t,clip_t"}, "--metrics clip_t,clip_t repeats one; name each once"),
        ({"subjects": "dog,cat2,dog"}, "--subjects dog,cat2,dog repeats one; name each once"),
        ({"subjects": "dog,"}, "--subjects 'dog,' has an empty name"),
        ({"max_prompts": 0}, "--max_prompts 0: give a number of at least 1"),
        ({"setting": "toon"}, "unknown flag --setting=toon"),
        ({"metrics": "div", "num_images": 1}, "--metrics has div, which needs two images of a prompt"),
        ({"num_images": 0}, "--num_images 0: give a number of at least 1"),
        ({"seed": -1}, "--seed -1: give a number of at least 0"),
        ({"eta": 2}, "eta is 2"),
        ({"real": "data/dog"}, "unknown flag --real=data/dog; see --help"),
        ({"base": "{tmp}"}, "has no model_index.json"),
        ({"clip": "{tmp}"}, "has no config.json"),
        ({"dino": "{clip}"}, "is a clip; give a ViTModel"),
        ({"blip": "{dino}"}, "give a Blip"),
        ({"blip_head": "both"}, "unknown head"),
        ({"train_flags": "--resolution=15"}, "--train_flags: --resolution 15 is not a multiple of 8"),
        ({"train_flags": "--resolution=16 --rank=4"}, "--train_flags: --rank does not exist here"),
        ({"train_flags": "--output_dir=x"}, "which an evaluation sets itself"),
        ({"output_dir": "{tmp}/file"}, "is a file; give a folder"),
    ],
)
def test_mistakes_are_reported_before_models_load(changes, words, flags, scorers, tmp_path, monkeypatch):
    for name in ("Scorer", "PartialState", "write_json"):
        monkeypatch.setattr(utils.evaluation.evaluation, name, None)
    (tmp_path / "file").touch()
    known = scorers | {"tmp": tmp_path}
    given = {name: v.format(**known) if isinstance(v, str) else v for name, v in changes.items()}
    with pytest.raises(UserError, match=re.escape(words)) as mistake:
        evaluate.main(flags(**{"output_dir": tmp_path / "out"} | given))
    assert "\n" not in str(mistake.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_two_evaluations_do_not_share_a_folder(flags, tmp_path):
    folder = tmp_path / "results"
    with RunLock(folder), pytest.raises(UserError, match="results is in use by process .*: wait for its end"):
        evaluate.main(flags(folder))
    assert [path.name for path in folder.iterdir()] == [LOCK_FILE]


def test_other_settings_need_another_folder(unbroken, flags):
    with pytest.raises(UserError, match="other settings: guidance_scale was 6.0, is 7.0"):
        evaluate.main(flags(unbroken, guidance_scale=7))


def test_a_trained_concept_is_scored_beside_its_base(unbroken, scorers, tmp_path, on_the_cpu):
    concept, prompts = unbroken / "classdiffusion" / "dog" / "concept", tmp_path / "prompts.txt"
    prompts.write_text("a {} on the beach\na <new1> dog wearing headphones\n")
    given = ["concept", str(concept), f"--prompts_file={prompts}"]
    given += [f"--{n}={m}" for n, m in scorers.items()]
    evaluate.main([*given, *SAMPLING, f"--output_dir={tmp_path / 'results'}"])
    ours, theirs = table_of(tmp_path / "results"), table_of(unbroken)
    assert [row["method"] for row in ours["rows"]] == ["base", "classdiffusion"]
    expected = [row["metric"] for row in theirs["per_subject"] if row["subject"] == "dog"]
    for row, metric in zip(ours["per_subject"], expected, strict=True):
        assert row["metric"] == pytest.approx(metric, abs=2e-6)
    assert ours["rows"][0]["metric"]["clip_t"]["low"] is None, "one subject has no interval"
    copied = tmp_path / "results" / "classdiffusion" / "concept" / "concept"
    assert (copied / "log.jsonl").read_bytes() == (concept / "log.jsonl").read_bytes()


def test_embedding_adjustment_turns_what_shows_the_concept(
    unbroken, scorers, tmp_path, on_the_cpu, monkeypatch
):
    concept, prompts = unbroken / "classdiffusion" / "dog" / "concept", tmp_path / "prompts.txt"
    prompts.write_text("a {} on the beach\na {} wearing headphones\n")
    given = ["concept", str(concept), f"--prompts_file={prompts}"]
    given += [f"--{n}={m}" for n, m in scorers.items()]
    monkeypatch.setattr("utils.evaluation.runs.score_subject", lambda *_: None)
    monkeypatch.setattr("utils.evaluation.evaluation.write_table", lambda *_: None)
    utils.evaluation.evaluation.evaluate(
        evaluate.parse(
            [*given, *SAMPLING, "--embedding_adjustment=1", f"--output_dir={tmp_path / 'results'}"]
        ),
        {},
    )
    for method, same in (("base", True), ("classdiffusion", False)):
        with (
            Image.open(tmp_path / "results" / method / "concept" / "images" / "00_0.png") as turned,
            Image.open(unbroken / method / "dog" / "images" / "00_0.png") as plain,
        ):
            assert (turned.tobytes() == plain.tobytes()) == same, method
            assert turned.text.get("embedding_adjustment") == (None if same else "1.0")
    settings = json.loads((tmp_path / "results" / "settings.json").read_text())
    assert settings["embedding_adjustment"] == 1.0
    with pytest.raises(UserError, match="--embedding_adjustment 2: give a share"):
        evaluate.parse(["dataset", "toon", "--embedding_adjustment=2"])


def test_images_from_elsewhere_are_scored_as_ours(unbroken, scorers, dataset, tmp_path, on_the_cpu):
    folder = unbroken / "classdiffusion" / "dog"
    given = ["generated", str(folder / "images"), f"--generated_class={folder / 'class'}"]
    given += [f"--real={dataset / 'dog'}", "--cls_token=dog", *(f"--{n}={m}" for n, m in scorers.items())]
    evaluate.main([*given, f"--output_dir={tmp_path / 'results'}"])
    (row,) = table_of(tmp_path / "results")["per_subject"]
    assert (row["subject"], row["method"]) == ("dog", "generated")
    (expected,) = (
        r["metric"]
        for r in table_of(unbroken)["per_subject"]
        if (r["subject"], r["method"]) == ("dog", "classdiffusion")
    )
    assert row["metric"] == pytest.approx(expected, abs=2e-6)
    with pytest.raises(UserError, match="unknown flag --eta=1"):
        evaluate.main([*given, "--eta=1", f"--output_dir={tmp_path / 'results'}"])


def test_dreambench_plus_is_evaluated_and_written_for_its_own_evaluation(
    tiny_base, scorers, tmp_path, on_the_cpu
):
    """Two toon renders in its layout; then read as its evaluation reads: files by collection and prompt."""
    data, results = tmp_path / "copy" / "data", tmp_path / "results"
    nouns = {"live_subject/animal/00": "dog", "object/01": "barn"}
    for (place, noun), kind in zip(nouns.items(), ("dog", "barn"), strict=True):
        for part in ("images", "captions"):
            (data / part / place).parent.mkdir(parents=True, exist_ok=True)
        render = open_image(REPOSITORY / "data" / kind / "0.png")
        render.resize((32, 32)).save(data / "images" / f"{place}.jpg")
        prompts = [f"a {noun} in place {i}" for i in range(9)]
        (data / "captions" / f"{place}.txt").write_text("\n".join([noun, *prompts]) + "\n")
    given = [f"--{n}={m}" for n, m in scorers.items()]
    given += ["--num_images=1", "--num_inference_steps=1", "--methods=base", "--metrics=clip_t,dino_i"]
    given += [f"--base={tiny_base}", f"--data_dir={tmp_path / 'copy'}", f"--output_dir={results}"]
    evaluate.main(["dataset", "dreambench_plus", *given])
    table = table_of(results)
    assert {name: rows[0]["subjects"] for name, rows in table["categories"].items()} == {
        "animal": 1,
        "object": 1,
    }
    assert "Category object:" in (results / "table.md").read_text()
    for name in ("live_subject_animal_00_dog", "object_01_barn"):
        for prompt in range(9):
            method_dir, place = results / "dreambench_plus" / "base", f"{name}/{prompt}_0"
            assert (method_dir / "text" / f"{place}.txt").read_text() == (
                f"a {name.rpartition('_')[2]} in place {prompt}"
            )
            ours = open_image(results / "base" / name / "images" / f"{prompt:02d}_0.png")
            theirs = open_image(method_dir / "tgt_image" / f"{place}.jpg")
            difference = ImageStat.Stat(ImageChops.difference(ours, theirs)).mean
            assert max(difference) < 12  # JPEG's loss
            assert open_image(method_dir / "src_image" / f"{place}.jpg").size == (32, 32)


def drawn_by(folder: Path, **bases: str | None) -> list[Path]:
    """Images named by the keys, each with its base, if it has one, in its metadata."""
    folder.mkdir(exist_ok=True)
    for name, base in bases.items():
        metadata = {"prompt": "a dog"} | ({} if base is None else {"base": base})
        save_png(Image.new("RGB", (8, 8)), folder / f"{name}.png", metadata)
    return sorted(folder.iterdir())


def test_images_of_the_embedded_model_get_its_judges_and_photographs_the_field_s(tmp_path):
    toon = drawn_by(tmp_path / "toon", a="data/toon/sd", b="toon", c=str(REPOSITORY / "data/toon/sd"))
    assert base_of_images(toon).judges == {
        k: str(REPOSITORY / "data/toon" / k) for k in ("clip", "dino", "blip")
    }
    for photographs in (
        {"a": None},
        {"a": "stable-diffusion-v1-5/stable-diffusion-v1-5"},
        {"a": "own/model"},
    ):
        folder = tmp_path / "-".join(map(str, photographs.values())).replace("/", "_")
        assert base_of_images(drawn_by(folder, **photographs)).judges["dino"] == "facebook/dino-vits16"
    for other in (None, "sd15"):
        with pytest.raises(UserError, match=r"different bases \(a.png by toon, b.png by .*\); say --base"):
            base_of_images(drawn_by(tmp_path / f"mixed-{other}", a="toon", b=other))


def test_judges_are_named_before_anything_loads(dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(utils.evaluation.evaluation, "check_metrics", lambda *_: sys.exit("stopped"))
    given = ["generated", str(drawn_by(tmp_path / "x", a=None)[0].parent), f"--real={dataset / 'dog'}"]
    for base, clip in (((), "openai/clip-vit-base-patch32"), (("--base=toon",), "data/toon/clip")):
        with pytest.raises(SystemExit, match="stopped"):
            evaluate.main([*given, *base, "--metrics=clip_t", f"--output_dir={tmp_path / 'out'}"])
        assert capsys.readouterr().out.splitlines()[-1] == f"judges: clip {clip}"


def test_a_benchmark_can_be_shortened(flags, tmp_path):
    config = evaluate.parse(flags(tmp_path, subjects="dog", max_prompts=1))
    (subject,) = source_of(config, evaluate.benchmarks()).subjects
    assert (subject.name, subject.prompts) == ("dog", ["a <new1> dog on the beach"])
    config = evaluate.parse(["dataset", "toon", "--subjects=cat_1,dog_0", "--max_prompts=3"])
    source = source_of(config, evaluate.benchmarks())
    assert [(s.name, len(s.templates)) for s in source.subjects] == [("cat_1", 3), ("dog_0", 3)]
    assert source.word_judge is not None and source.base.name == "toon"


def test_dry_run_counts_estimates_and_writes_nothing(flags, tiny_base, tmp_path, capsys, monkeypatch):
    learn, draw = plan.measure(base_row(tiny_base), torch.device("cpu"), "torch.float32")
    assert 0 < draw < 10 and 0 < learn < 10
    monkeypatch.setattr(plan, "measure", lambda *_: (0.5, 0.25))
    evaluate.main([*flags(tmp_path / "results"), "--dry_run"])
    *_, counts, disk, measured, left = capsys.readouterr().out.splitlines()
    # 2 prompts x 2 seeds and 2 of the class; 2 trainings of 2 steps of 2 images
    assert counts == "2 subjects x 2 methods: 2 trainings, 0 done; 24 images, 0 done"
    assert disk.startswith("disk, at most: images 0.0 MB, concepts 0.")
    assert measured == (
        "measured on cpu, 2 images at a time: 0.5 s an image of a training step, 0.25 s a denoising step of "
        "an image"
    )
    assert left == "left: about 15 s in one process, without loading models and scoring"  # 8 x .5 + 48 x .25
    assert not (tmp_path / "results").exists()


def test_the_plan_of_jobs_says_their_number_hours_and_disk(unbroken, flags, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "measure", lambda *_: (450.0, 75.0))
    config = evaluate.parse(flags(tmp_path / "results"))
    source = source_of(config, evaluate.benchmarks())
    settings = settings_of(config, source, ["clip_t", "pres"], models_of(config, source))
    lines = list(plan.describe(source, settings, tmp_path / "results", torch.device("cpu"), 2))
    assert lines[1] == "4 jobs to submit, 2 at a time"
    # 8 passes of 450 s, 48 steps of 75 s
    assert lines[-1] == "in jobs: 2.0 CPU hours, if theirs is like this one; about 60 min with 2 at a time"
    work = plan.Work(trainings=1000, images=10**6, of_method={"classdiffusion": 1000})
    sizes = [
        float(size.replace(",", "")) for size in re.findall(r"([\d,.]+) MB", plan.disk(source, work, 10))
    ]
    weights = [path.stat().st_size for path in (unbroken / FOLDERS[3] / "concept").glob("*.safetensors")]
    assert sizes[0] == pytest.approx(3 * 16 * 16), "a million RGB images of the base's size"
    assert sizes[1] == pytest.approx(1000 * sum(weights) / 1e6, rel=0.1)
    assert sizes[2] == pytest.approx(3 * sizes[1] / 100, abs=0.051), (
        "weights and two moments, of 10 at a time"
    )

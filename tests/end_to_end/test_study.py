"""scripts/study.py on tiny models: every checkpoint judged once, cells that others hold, the table."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

import train_classdiffusion
from scripts import study
from tests.tiny_scorers import write_scorers
from utils.common.errors import UserError
from utils.evaluation import training_process
from utils.training.lock import RunLock

PLAN = """
reference = "kv_only"
[data.dreambooth]
num_images = 1
num_class_images = 1
num_inference_steps = 2
metrics = ["clip_t", "dino_i", "pres"]
[arms.kv_only]
embedding_adjustment = 0.2
select_checkpoint = "spl"
max_train_steps = 2
checkpointing_steps = 1
resolution = 16
[arms.classdiffusion]
rates = [3]
steps = 0.006  # of 500
checkpoints = 2
resolution = 16
spl_weight = [10]
"""
CELLS = ("kv_only", "classdiffusion,spl_weight=10")


@pytest.fixture(scope="module")
def flags(tmp_path_factory, pictures, tiny_base) -> list[str]:
    """A command line on a DreamBooth set of one subject and one prompt."""
    folder = tmp_path_factory.mktemp("study")
    shutil.copytree(pictures("dog"), folder / "data" / "dog")
    section = "\n\nprompt_list = [\n'a {0} {1} on the beach'.format(a, b),\n]\n\n"
    prompts = f"Prompts\n\nObject Prompts{section}Live Subject Prompts{section}"
    text = f"Classes\n\nsubject_name,class\ndog,dog\n\n{prompts}"
    (folder / "data" / "prompts_and_classes.txt").write_text(text)
    (folder / "plan.toml").write_text(PLAN)
    judges = {k: v for k, v in write_scorers(folder / "judges").items() if k in ("clip", "dino")}
    given = [f"--{name}={value}" for name, value in judges.items()]
    return [str(folder / "plan.toml"), f"--data_dir={folder / 'data'}", f"--base={tiny_base}", *given]


@pytest.fixture(scope="module")
def trained() -> list[str]:
    """The output folders of the trainings so far."""
    return []


@pytest.fixture(scope="module")
def results(flags, tmp_path_factory, trained) -> Path:
    """A study in which another process holds a cell at first; then started again."""
    folder = tmp_path_factory.mktemp("results") / "study"

    def train_here(command: list[str], *_: object) -> int:
        forget_processes()
        trained.append(next(each for each in command if each.startswith("--output_dir=")))
        train_classdiffusion.main(command[2:])
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setattr(training_process, "run_child", train_here)
        with RunLock(folder / CELLS[1] / "seed-0" / "dog"):
            study.main([*flags, f"--output_dir={folder}"])
        assert len(trained) == 1 and CELLS[0] in trained[0]
        names = {point["name"] for point in json.loads((folder / "study.json").read_text())["points"]}
        assert names == {"kv_only", "kv_only,adjusted=0.2"}
        study.main([*flags, f"--output_dir={folder}"])
    return folder


def forget_processes() -> None:
    """accelerate keeps its settings for the life of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_each_cell_is_trained_once_and_every_checkpoint_judged(results, trained):
    assert [each.split("/")[-4] for each in trained] == list(CELLS)
    points = json.loads((results / "study.json").read_text())["points"]
    found = [(point["name"], point["subject"], point["seed"], point["step"]) for point in points]
    assert found == [
        ("kv_only", "dog", 0, 1),
        ("kv_only,adjusted=0.2", "dog", 0, 1),
        ("kv_only", "dog", 0, 2),
        ("kv_only,adjusted=0.2", "dog", 0, 2),
        ("classdiffusion,spl_weight=10", "dog", 0, 2),
        ("classdiffusion,spl_weight=10", "dog", 0, 3),
    ]
    assert all(point["values"].keys() == {"clip_t", "dino_i", "pres"} for point in points)
    values = [tuple(point["values"].values()) for point in points]
    assert len(set(values)) == 6  # checkpoints differ, and what is adjusted
    assert not list(results.glob("*/*/*/concept/checkpoint-*"))  # judged, so that nothing needs them


def test_flags_are_multiples_of_the_preset_s(results):
    file = results / CELLS[1] / "seed-0" / "dog" / "concept" / "training_config.json"
    config = json.loads(file.read_text())
    assert (config["max_train_steps"], config["spl_weight"]) == (3, 10.0)
    assert config["learning_rate"] == pytest.approx(3e-5)


def test_subjects_may_be_added_later(results):
    settings = json.loads((results / "settings.json").read_text())
    assert (settings["subjects"], settings["methods"]) == ([], ["base", *CELLS])
    assert [each["name"] for each in json.loads((results / "subjects.json").read_text())] == ["dog"]


def test_the_table_says_what_it_rests_on(results):
    table = (results / "table.md").read_text()
    assert "6 of 6 checkpoints judged; 1 subject (dog), training seeds 0" in table
    rows = [line.split(" | ")[0].strip("| ") for line in table.splitlines() if line.startswith("| ")]
    assert rows.count("kv_only") == 4  # two steps, composition lost, the checkpoint chosen
    assert "| kv_only | spl | 1 | 1 | " in table  # one subject, step 1: the nearest to its class
    assert rows.count("kv_only,adjusted=0.2") == 6  # and what is compared with the reference
    assert (results / "curves.png").read_bytes()[:4] == b"\x89PNG" and (results / "curves.svg").is_file()


def test_nothing_is_done_twice_and_other_settings_are_refused(results, flags, trained, capsys, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    study.main([*flags, f"--output_dir={results}", "--dry_run"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [
        "1 subject x 2 trainings x 1 seed: 2 trainings, 2 done; 12 images, 12 done",
        "nothing is left to train or to draw",
    ]
    assert "classdiffusion,spl_weight=10: judged at steps 2, 3" in lines[1]
    study.main([*flags, f"--output_dir={results}"])
    assert len(trained) == 2
    other = Path(flags[0]).with_name("other.toml")
    other.write_text(PLAN.replace("num_inference_steps = 2", "num_inference_steps = 3"))
    with pytest.raises(UserError, match="other settings: num_inference_steps was 2, is 3"):
        study.main([str(other), *flags[1:], f"--output_dir={results}"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("spl_weight = [10]", "spl_weight = [-1]"), r"\[arms.classdiffusion\]: --spl_weight -1"),
        (("max_train_steps = 2", "spl_weight = 2"), "--spl_weight has no effect on --method kv_only"),
        (('"dino_i", ', ""), "a study needs dino_i"),
        (("max_train_steps = 2", "method = 'neti'\nmax_train_steps = 2"), "there are no text states to read"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(flags, tmp_path, change, message):
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN.replace(*change))
    with pytest.raises(UserError, match=message):
        study.main([str(plan), *flags[1:], f"--output_dir={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_the_device_is_the_cpu_where_the_environment_says_so(monkeypatch):
    from utils.study.study import device_of

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert device_of() == torch.device("cpu")

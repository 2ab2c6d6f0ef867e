"""Names in strangers' files that would lead out of a folder, through every program that writes by them."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import inference
import videogen
from scripts import evaluate, export, merge_concepts, report
from tests.faults.commands import End, call, content_of
from tests.faults.shim import survived, tried
from tests.results_folder import write_results
from utils.common.errors import UserError
from utils.common.tensor_files import read_tensors, write_pickle
from utils.concepts.formats import WEIGHTS_STEM, read_concept
from utils.concepts.names import OWN_FILES, check_token
from utils.evaluation.published_sets import read_customconcept101, read_dreambooth

OUTSIDE = "{outside}"  # stands for the path of a file of somebody else, without its suffix
HOSTILE = {
    "absolute": (OUTSIDE, "has a path separator"),
    "parent": ("../elsewhere/victim", "has a path separator"),
    "below": ("a/b", "has a path separator"),
    "backslash": ("..\\elsewhere\\victim", "has a path separator"),
    "dots": ("..", "begins with a dot"),
    "hidden": (".run.lock", "begins with a dot"),
    "empty": ("", "is empty"),
    "NUL": ("<new1>\0", "cannot be printed"),
    "newline": ("<new\n1>", "cannot be printed"),
    "long": ("x" * 201, "has more than 200 bytes"),
    "weights": (WEIGHTS_STEM, "is the name of another file"),
    "learner": ("UNet", "is the name of another file"),
}
PROGRAMS: dict[str, Callable[[Path, Path, Path, Path], End]] = {
    **{
        f"export {layout}": lambda bad, good, base, out, layout=layout: call(
            export.main,
            [
                str(bad),
                str(out),
                f"--format={layout}",
                *([] if layout == "embedding" else [f"--base={base}"]),
            ],
        )
        for layout in ("official", "lora", "diff", "embedding", "diffusers")
    },
    "merge_concepts": lambda bad, good, base, out: call(
        merge_concepts.main, [str(good), str(bad), f"--output={out}", f"--base={base}"]
    ),
    "inference": lambda bad, good, base, out: call(
        inference.main, [f"--concept={bad}", f"--base={base}", f"--output_dir={out}"]
    ),
    "videogen": lambda bad, good, base, out: call(
        videogen.main, [f"--concept={bad}", f"--base={base}", f"--output_dir={out}"]
    ),
}


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """Somebody else's files, which hostile names point at."""
    for suffix in (".bin", ".safetensors", ""):
        path = tmp_path / "elsewhere" / f"victim{suffix}"
        path.parent.mkdir(exist_ok=True)
        path.write_text("precious")
    return tmp_path / "elsewhere" / "victim"


def official(folder: Path, own: Path, token: str) -> Path:
    """A concept of the official layout, which names its token in a file, made of one of ours."""
    folder.mkdir()
    weights = read_tensors(own / f"{WEIGHTS_STEM}.safetensors")
    write_pickle(folder / f"{WEIGHTS_STEM}.bin", weights)
    write_pickle(folder / "<new1>.bin", {token: torch.ones(32)})
    return folder


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_token_writes_nowhere(kind: str, concept: Path, tiny_base: Path, victim: Path):
    name, reason = HOSTILE[kind]
    bad = official(concept.parent / "bad", concept, name.replace(OUTSIDE, str(victim)))
    out = concept.parent / "deep" / "er" / "out"
    out.parent.mkdir(parents=True)
    before = content_of(concept.parent)
    for program, run in PROGRAMS.items():
        tried(f"hostile name: {program}")
        end = run(bad, concept, tiny_base, out)
        assert end.refused and reason in end.stderr, (program, end)
        assert content_of(concept.parent) == before, program
        survived(f"hostile name: {program}")


def test_each_layout_is_checked_and_a_plain_name_is_written(concept: Path, tiny_base: Path, victim: Path):
    """An Adobe file, a pickled embedding and one of diffusers: tokens come from each by another way."""
    folder, rows = concept.parent, {f"../{victim.name}": torch.ones(32)}
    write_pickle(folder / "delta.bin", {"unet": {}, "modifier_token": rows})
    write_pickle(folder / "learned_embeds.bin", rows)
    (folder / "...pt").write_bytes(pickle.dumps(0))
    write_pickle(folder / "a.pt", {"string_to_param": {"*": torch.ones(32)}, "name": "../x"})
    for name in ("delta.bin", "learned_embeds.bin"):
        with pytest.raises(UserError, match="token '../victim' has a path separator: name it with --token"):
            read_concept(folder / name)
    assert list(read_concept(folder / "a.pt").rows) == ["<a>"]  # the name inside is not used
    good = official(folder / "good", concept, "<new1>")
    end = call(export.main, [str(good), str(folder / "out"), "--format=official", f"--base={tiny_base}"])
    assert end.code == 0
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["<new1>.bin", f"{WEIGHTS_STEM}.bin"]


@pytest.mark.parametrize("kind", [kind for kind in HOSTILE if kind not in ("NUL", "newline")])
def test_flags_and_files_have_one_check(kind: str, victim: Path):
    name, reason = HOSTILE[kind]
    with pytest.raises(UserError, match=reason):
        check_token("--modifier_token", name.replace(OUTSIDE, str(victim)))


def test_what_a_token_may_be_called():
    for token in ("<new1>", "sks", "<dog-1>", "<ä>", "新", "a.b", "<..>", "new1."):
        check_token("token", token)
    assert all(name == name.lower() for name in OWN_FILES)


def picture(folder: Path) -> None:
    folder.mkdir(parents=True)
    shutil.copy(Path(__file__).parents[2] / "data" / "dog" / "0.png", folder)


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", ".hidden", "a/../../elsewhere"])
def test_subjects_of_a_benchmark_stay_in_the_results_folder(name: str, tmp_path: Path):
    form = "subject_name,class\n{},dog\n\nPrompts\n\nObject Prompts\n'a {{0}} {{1}}'.format(unique_token)\n"
    form += "Live Subject Prompts\n'a {{0}} {{1}}'.format(unique_token)\n"
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "prompts_and_classes.txt").write_text(form.format(name))
    picture(tmp_path / "elsewhere")
    tried("hostile name: benchmark")
    with pytest.raises(UserError, match=r"subject '.+' (has a path separator|begins with a dot)"):
        read_dreambooth(tmp_path / "set")
    out = tmp_path / "results"
    given = ["dataset", "dreambooth", f"--data_dir={tmp_path / 'set'}", f"--output_dir={out}"]
    end = call(evaluate.main, given)
    assert end.refused and not out.exists(), end
    survived("hostile name: benchmark")


@pytest.mark.parametrize(("key", "value"), [("instance_data_dir", "../elsewhere"), ("prompt_filename", "/x")])
def test_paths_of_a_benchmark_stay_in_the_copy(key: str, value: str, tmp_path: Path):
    entry = {"instance_prompt": "a <new1> dog", "class_prompt": "dog", "instance_data_dir": "./dog/"}
    entry |= {"prompt_filename": "prompts/dog.txt"}
    picture(tmp_path / "dog")
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "dog.txt").write_text("a {} asleep\n")
    (tmp_path / "dataset.json").write_text(json.dumps([entry]))
    (subject,) = read_customconcept101(tmp_path)
    assert (subject.name, subject.individuals[0].folder) == ("dog", tmp_path / "dog")
    (tmp_path / "dataset.json").write_text(json.dumps([entry | {key: value}]))
    with pytest.raises(UserError, match=r"entry 1 has the path '.+': its part '(\.\.|/)' .*: stay in"):
        read_customconcept101(tmp_path)


@pytest.mark.parametrize("file", ["subjects.json", "table.json", "records.jsonl"])
def test_a_report_reads_no_image_from_outside(file: str, tmp_path: Path):
    folder = write_results(tmp_path / "results")
    path = {path.name: path for path in folder.rglob(file)}[file]
    names = {"subjects.json": '"rex"', "table.json": '"base"', "records.jsonl": "images/00_0.png"}
    content = path.read_text()
    assert names[file] in content
    outside = "images/../../x" if file == "records.jsonl" else '"../results"'
    path.write_text(content.replace(names[file], outside))
    tried("hostile name: report")
    end = call(report.main, [str(folder)])
    assert end.refused and not (folder / "report.html").exists(), end
    survived("hostile name: report")


def test_names_in_a_base_become_no_files(concept: Path, tiny_base: Path, victim: Path):
    """A tokenizer's chat templates are written to files of their names."""
    base, out = Path(shutil.copytree(tiny_base, concept.parent / "sd")), concept.parent / "out"
    file = base / "tokenizer" / "tokenizer_config.json"
    templates = [
        {"name": f"../../../elsewhere/{victim.name}", "template": "x"},
        {"name": "b", "template": ""},
    ]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": templates}))
    tried("hostile name: base")
    end = call(export.main, [str(concept), str(out), "--format=diffusers", f"--base={base}"])
    assert end.code == 0, end
    assert not [path for path in concept.parent.rglob("*.jinja")]
    survived("hostile name: base")

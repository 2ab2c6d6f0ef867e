"""Texts and JSON as people and strangers save them: marks, line breaks, depth, length, file names."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import blip2t
import inference
from scripts import evaluate, report
from tests.faults.commands import call
from tests.faults.shim import survived, tried
from tests.results_folder import write_results
from tests.tiny_blip import write_blip
from tests.tiny_scorers import write_scorers
from utils.common.config_file import read_flags
from utils.common.errors import UserError
from utils.common.files import read_json, write_json
from utils.config.concepts import read_concepts_list
from utils.config.train_config import TrainConfig, read_config
from utils.data.image_captions import read_captions
from utils.evaluation.published_sets import read_customconcept101, read_dreambooth

BOM = b"\xef\xbb\xbf"


def test_a_mark_at_the_beginning_is_taken_everywhere(tmp_path: Path):
    entries = [{"instance_data_dir": "dog", "instance_prompt": "a <new1> Bär"}]
    (tmp_path / "list.json").write_bytes(BOM + json.dumps(entries, ensure_ascii=False).encode())
    assert read_concepts_list(tmp_path / "list.json") == entries
    (tmp_path / "run.toml").write_bytes(BOM + b'seed = 3\ncls_token = "B\xc3\xa4r"\n')
    assert read_flags(TrainConfig, tmp_path / "run.toml") == {"seed": 3, "cls_token": "Bär"}
    (tmp_path / "run.json").write_bytes(BOM + b'{"seed": 3, "instance_data_dir": "dog", "cls_token": "dog"}')
    assert read_flags(TrainConfig, tmp_path / "run.json")["seed"] == 3
    assert read_config(tmp_path / "run.json")[0].seed == 3
    (tmp_path / "0.txt").write_bytes(BOM + b"my dog")
    assert read_captions(tmp_path, [tmp_path / "0.png"])[tmp_path / "0.png"][0] == "my dog"


def test_separators_of_lines_that_are_none_in_json(tmp_path: Path):
    separators = "\u2028\u2029\x85\x0b"
    lines = [{"file_name": f"{n}.png", "text": f"my{each}dog"} for n, each in enumerate(separators)]
    text = "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (tmp_path / "metadata.jsonl").write_bytes(f"{text}\n".encode())
    captions = read_captions(tmp_path, [tmp_path / line["file_name"] for line in lines])
    assert [caption for caption, _ in captions.values()] == ["my dog"] * 4


@pytest.mark.parametrize("size", [1001, 10_000_000])
@pytest.mark.parametrize("name", ["0.txt", "metadata.jsonl"])
def test_an_endless_caption_neither_hangs_nor_is_repeated(
    name: str, size: int, pictures: Callable[..., Path], dog_flags: Callable[..., list[str]], tmp_path: Path
):
    import train_classdiffusion

    images = Path(shutil.copytree(pictures("dog"), tmp_path / "images"))
    text = "dog " * (size // 4) + "dog"
    line = json.dumps({"file_name": "0.png", "text": text})
    (images / name).write_text(text if name == "0.txt" else line)
    tried("endless caption")
    end = call(train_classdiffusion.main, dog_flags(tmp_path / "out", instance_data_dir=images))
    assert end.refused and "characters: give at most 1,000" in end.stderr and len(end.stderr) < 500, end
    survived("endless caption")


SETS = {
    "binary prompts_and_classes.txt": ("prompts_and_classes.txt", bytes(range(256)), "is not UTF-8 text"),
    "dataset.json with an integer path": (
        "dataset.json",
        json.dumps(
            [
                {
                    "instance_prompt": "a <new1>",
                    "class_prompt": "x",
                    "instance_data_dir": "x",
                    "prompt_filename": 3,
                }
            ]
        ).encode(),
        "entry 1 has the path 3: its part '' is empty",
    ),
    "dataset.json deep": ("dataset.json", b"[" * 100_000, "is not valid JSON"),
    "dataset.json binary": ("dataset.json", b"\xff\x00", "is not UTF-8 text"),
    "dataset.json cut": ("dataset.json", b"[{", "is not valid JSON"),
    "dataset.json of lists": ("dataset.json", b"[[[1]]]", "entry 1 has 0 concepts"),
}


@pytest.mark.parametrize("kind", SETS)
def test_copies_of_benchmarks(kind: str, tmp_path: Path):
    name, content, message = SETS[kind]
    (tmp_path / name).write_bytes(content)
    dataset = "customconcept101" if name == "dataset.json" else "dreambooth"
    tried("odd benchmark")
    with pytest.raises(UserError, match=message) as caught:
        (read_customconcept101 if name == "dataset.json" else read_dreambooth)(tmp_path)
    assert "\n" not in str(caught.value)
    out = tmp_path / "out"
    end = call(evaluate.main, ["dataset", dataset, f"--data_dir={tmp_path}", f"--output_dir={out}"])
    assert end.refused and not out.exists(), end
    survived("odd benchmark")


@pytest.mark.parametrize("content", [b"[]", b"3", b"null", b'"x"', b"[" * 100_000, b"\xff"])
@pytest.mark.parametrize("name", ["settings.json", "subjects.json", "table.json"])
def test_results_of_strangers(name: str, content: bytes, tmp_path: Path):
    folder = write_results(tmp_path / "results")
    (folder / name).write_bytes(content)
    tried("odd results folder")
    end = call(report.main, [str(folder)])
    assert end.refused and not (folder / "report.html").exists(), end
    survived("odd results folder")


@pytest.fixture
def evaluation(concept: Path, pictures: Callable[..., Path], tmp_path: Path) -> Callable[..., list[str]]:
    """evaluation(*more): a command line that draws one image of a tiny concept and scores it."""
    judges = write_scorers(tmp_path / "judges")
    write_json(
        concept / "training_config.json",
        {
            "instance_data_dir": str(pictures("dog")),
            "cls_token": "dog",
            "pretrained_model_name_or_path": json.loads((concept / "concept.json").read_text())["base"],
        },
    )
    (tmp_path / "prompts.txt").write_text("a {} asleep\n")
    given = ["concept", str(concept), f"--prompts_file={tmp_path / 'prompts.txt'}", "--num_images=1"]
    given += ["--methods=base", "--metrics=clip_t", f"--output_dir={tmp_path / 'results'}"]
    return lambda *more: [*given, *(f"--{n}={path}" for n, path in judges.items()), *more]


@pytest.mark.parametrize("content", [b"[]", b"3", b"null", b"[" * 100_000, b"\xff"])
def test_settings_that_are_none(content: bytes, evaluation: Callable[..., list[str]], tmp_path: Path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "settings.json").write_bytes(content)
    tried("odd settings.json")
    end = call(evaluate.main, evaluation("--num_inference_steps=2"))
    assert end.refused and "settings.json" in end.stderr, end
    survived("odd settings.json")


def test_a_mistake_leaves_no_settings_that_refuse_the_corrected_run(
    evaluation: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nor do the settings of a run that ended before it had drawn anything."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    tried("mistaken evaluation")
    end = call(evaluate.main, evaluation("--num_inference_steps=2000"))
    assert end.refused and "--num_inference_steps is 2000; " in end.stderr, end
    assert not (tmp_path / "results").exists()
    write_json(tmp_path / "results" / "settings.json", {"seeds": [1, 2]})
    end = call(evaluate.main, evaluation("--num_inference_steps=2"))
    assert end.code == 0, end
    end = call(evaluate.main, evaluation("--num_inference_steps=3"))
    assert end.refused and "num_inference_steps was 2, is 3; give the same" in end.stderr, end
    survived("mistaken evaluation")


def test_file_names_that_are_no_text(pictures: Callable[..., Path], tmp_path: Path, capfdbinary):
    images = Path(shutil.copytree(pictures("dog"), tmp_path / "images"))
    name = os.fsdecode(b"\xff\xfe.png")
    (images / "0.png").rename(images / name)
    blip = write_blip(tmp_path / "blip", "BLIP-1")
    tried("file name that is no UTF-8")
    code = os.waitstatus_to_exitcode(
        os.system(
            f"cd {Path(blip2t.__file__).parent} && {shutil.which('python')} blip2t.py --json --model={blip} "
            f"--image={images} --prompt='a dog' > {tmp_path / 'out'} 2> {tmp_path / 'err'}"
        )
    )
    assert code == 0, (tmp_path / "err").read_text()
    scores = json.loads((tmp_path / "out").read_text())["scores"]
    assert Path(scores[-1]["image"]).name == name  # as it was, through JSON's escapes
    write_json(tmp_path / "a.json", {"file": name})
    assert read_json(tmp_path / "a.json") == {"file": name}
    survived("file name that is no UTF-8")


@pytest.mark.parametrize("missing", ["tokenizer", "unet", "scheduler", "vae", "text_encoder"])
def test_a_base_without_a_part(missing: str, tiny_base: Path, tmp_path: Path):
    base = Path(shutil.copytree(tiny_base, tmp_path / "sd"))
    shutil.rmtree(base / missing)
    out = tmp_path / "out"
    tried("base without a part")
    end = call(inference.main, [f"--base={base}", "--prompt=a dog", f"--output_dir={out}"])
    assert end.refused and not out.exists(), end
    survived("base without a part")


def test_validation_images_of_too_many_steps(dog_flags: Callable[..., list[str]], tmp_path: Path):
    import train_classdiffusion

    flags = {"validation_prompt": "a <new1> dog", "validation_inference_steps": 2000}
    end = call(train_classdiffusion.main, dog_flags(tmp_path / "out", **flags))
    assert end.refused and "--validation_inference_steps is 2000; " in end.stderr, end


def test_metadata_of_a_name_that_is_no_text(tmp_path: Path):
    from utils.common.images import save_png

    save_png(Image.new("RGB", (2, 2)), tmp_path / "a.png", {"source": os.fsdecode(b"\xff.png"), "p": "ä"})
    with Image.open(tmp_path / "a.png") as image:
        assert (image.info["source"], image.info["p"]) == ("\\udcff.png", "ä")

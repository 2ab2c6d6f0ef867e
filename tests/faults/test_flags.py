"""Every flag of every command with junk: one line on stderr, exit 2, nothing written, no model loaded."""

import importlib
import os
import shutil
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import torch
from PIL import Image

from tests.faults.commands import Command, as_nobody, call, content_of, no_models
from tests.faults.shim import survived, tried
from tests.results_folder import write_results
from tests.tiny_motion import write_adapter
from tests.tiny_scorers import write_scorers
from utils.concepts.save import save_concept
from utils.files import write_json
from utils.images import save_png

REPOSITORY = Path(__file__).parents[2]
LONG = "9" * 10_000
NUMBERS = {
    "word": "many",
    "nan": "nan",
    "infinite": "inf",
    "overflow": "1e999",
    "negative": "-1",
    "empty": "",
    "two lines": "1\n2",
    "list": "[1]",
    "10 kB": LONG,
}
COUNTS = NUMBERS | {"fraction": "1.5", "2**64": str(2**64)}
TEXTS = {
    "empty": "",
    "blank": " \n",
    "two lines": "a\nb",
    "900 characters": "x" * 900,
    "10 kB": "x" * 10_000,
    "not UTF-8": os.fsdecode(b"\xff\xfe"),
    "control": "\x1b[31m",
}
PATHS = {
    "empty": "",
    "missing": "missing/thing",
    "two lines": "a\nb",
    "name of 3 kB": "x" * 3000,
    "10 kB": "x/" * 5000,
    "not UTF-8": os.fsdecode(b"\xff\xfe"),
    "file": "junk.bin",
    "file as a folder": "junk.bin/inside",
    "folder": "empty",
    "unreadable file": "unreadable.txt",
    "unreadable folder": "unreadable",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, pictures: Any) -> Iterator[Path]:
    """A folder that anybody can read, with one of everything that commands take, and with junk."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(tiny_base, folder / "sd")
        shutil.copytree(tiny_base, folder / "words" / "sd")
        (folder / "drawn").mkdir()
        shutil.copytree(pictures("dog"), folder / "dog")
        write_adapter(folder / "adapter")
        write_scorers(folder / "scorers")
        write_results(folder / "results")
        save_png(Image.new("RGB", (16, 16)), folder / "drawn" / "0.png", {"prompt": "a <new1> dog"})
        for number in (1, 2):
            write_concept(folder / f"concept{number}", folder / "sd", f"<new{number}>", folder / "dog")
        (folder / "junk.bin").write_bytes(bytes(range(256)))
        (folder / "empty").mkdir()
        (folder / "unreadable").mkdir()
        (folder / "unreadable" / "0.png").write_bytes((folder / "dog" / "0.png").read_bytes())
        (folder / "unreadable.txt").write_text("a photo of a dog\n")
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        folder.chmod(0o777)
        (folder / "unreadable").chmod(0)
        (folder / "unreadable.txt").chmod(0)
        yield folder


def write_concept(folder: Path, base: Path, token: str, images: Path) -> None:
    """A concept whose K/V are noise, of the tiny base, as training leaves it."""
    generator = torch.Generator().manual_seed(len(token))
    kv = {}
    for block in ("down_blocks.0", "up_blocks.1", "mid_block"):
        for attention in range(2 if block[0] == "u" else 1):
            layer = f"{block}.attentions.{attention}.transformer_blocks.0.attn2"
            width = 64 if block == "mid_block" else 32
            kv |= {f"{layer}.to_{p}.weight": torch.randn(width, 32, generator=generator) for p in "kv"}
    save_concept(folder, kv, {token: torch.ones(32)}, base=str(base), classes=["dog"])
    flags = {"instance_data_dir": str(images), "cls_token": "dog", "modifier_token": token}
    write_json(folder / "training_config.json", flags | {"pretrained_model_name_or_path": str(base)})


TRAIN = "--pretrained_model_name_or_path=sd --instance_data_dir=dog --cls_token=dog --output_dir=out"
JUDGES = "--clip=scorers/clip --dino=scorers/dino --blip=scorers/blip"
COMMANDS = {
    "train": Command("train_classdiffusion", "TrainConfig", tuple(TRAIN.split())),
    "train, prior": Command(
        "train_classdiffusion",
        "TrainConfig",
        (*TRAIN.split(), "--with_prior_preservation", "--class_prompt=a dog"),
    ),
    "inference": Command("inference", "InferenceConfig", ("--concept=concept1",)),
    "inference, base": Command("inference", "InferenceConfig", ("--base=sd", "--prompt=a dog")),
    "videogen": Command(
        "videogen", "VideoConfig", ("--base=sd", "--concept=concept1", "--motion_adapter=adapter")
    ),
    "blip2t": Command(
        "blip2t", "ScoreConfig", ("--image=dog", "--prompt=a photo of a dog", "--model=scorers/blip")
    ),
    "evaluate, dataset": Command("scripts.evaluate", "Flags", ("--dataset=toon", "--output_dir=out")),
    "evaluate, concept": Command(
        "scripts.evaluate",
        "Flags",
        ("--concept=concept1", "--num_inference_steps=2", "--output_dir=out", *JUDGES.split()),
    ),
    "evaluate, generated": Command(
        "scripts.evaluate",
        "Flags",
        ("--generated=drawn", "--real=dog", "--output_dir=out", *JUDGES.split()),
    ),
    "report": Command("scripts.report", "ReportConfig", ("results",)),
    "export": Command("scripts.export", "ExportConfig", ("concept1", "out")),
    "merge_concepts": Command(
        "scripts.merge_concepts", "MergeConfig", ("concept1", "concept2", "--output=out")
    ),
    "benchmark, evaluate": Command("scripts.benchmark", "BenchmarkConfig", ("evaluate", "--images=1")),
    "benchmark, train": Command(
        "scripts.benchmark",
        "BenchmarkConfig",
        ("train", "--base=tiny", "--rounds=1", "--minutes=1e-9", "--work_dir=out"),
    ),
    "semantic_space": Command("scripts.semantic_space", "Config", ("concept1", "--output_dir=out")),
    "attention_maps": Command("scripts.attention_maps", "Config", ("concept1", "--output_dir=out")),
    "conditional_spread": Command(
        "scripts.conditional_spread", "Config", ("concept1", "--output_dir=out", "--num_images=0")
    ),
    "context_prompts": Command("scripts.context_prompts", "Config", ()),
    "pretrain_contextualizer": Command("scripts.pretrain_contextualizer", "Config", ("--base=sd",)),
}
TOON = {
    "tokenizer": "--output_dir=out",
    "draw_examples": "--output_dir=out --resolution=16",
    "benchmark_set": "--output_dir=out",
    "measure": f"--models={REPOSITORY}/data/toon",
    "motion_accuracy": "--base=sd --motion_adapter=adapter --concept=concept1 --dino=scorers/dino",
    "masked_scenes": "--output_dir=out --count=1",
    "rank_table": "concept1 --output_dir=out",
    "prompt_accuracy": "--base=sd --num_inference_steps=2",
    "tune": "--output_dir=out --work_dir=out",
    "train_autoencoder": "--output_dir=out --work_dir=out",
    "train_blip": "--output_dir=out --work_dir=out",
    "train_clip": "--output_dir=words --work_dir=out",
    "train_dino": "--output_dir=out --work_dir=out",
    "train_motion": "--output_dir=out --work_dir=out --base=sd",
    "train_recogniser": "--output_dir=out --work_dir=out",
    "train_unet": "--output_dir=sd --work_dir=out --dino=scorers/dino",
}
COMMANDS |= {
    f"toon {name}": Command(f"scripts.toon.{name}", "Flags", tuple(flags.split()))
    for name, flags in TOON.items()
}

# What looks like junk but is not: (flag, what is wrong). Output folders are made.
LEGAL = {
    ("evaluate, generated", "modifier_token", "900 characters"),
    *(("evaluate, generated", "base", wrong) for wrong in ("missing", "file as a folder")),  # Hub ids
    *(
        (flag, wrong)
        for flag in ("output_dir", "output", "class_data_dir", "work_dir")
        for wrong in ("missing", "folder")
    ),
    ("negative_prompt", "empty"),
    ("validation_prompt", "empty"),
    ("benchmark, train", "json", "missing"),
    *((flag, "900 characters") for flag in "revision variant cls_token class_prompt tracker_name".split()),
    *((flag, "900 characters") for flag in "prompt negative_prompt validation_prompt subject".split()),
}

# Texts that name a file, a folder or a model.
PLACES = frozenset(
    "pretrained_model_name_or_path instance_data_dir class_data_dir concepts_list output_dir base model clip "
    "dino blip motion_adapter captions resume_from_checkpoint data_dir".split()
)


def junk_for(name: str, hint: Any) -> dict[str, str]:
    """What is wrong with the value -> the value, for a flag of this type."""
    kinds = [hint, *get_args(hint)] if get_origin(hint) in (UnionType, tuple) else [hint]
    if bool in kinds:
        return {"a value": "yes"}
    if int in kinds:
        return COUNTS
    if float in kinds:
        return NUMBERS
    if Path in kinds:
        return PATHS
    return TEXTS | PATHS if name in PLACES else TEXTS


def with_junk(command: Command, name: str, value: str) -> list[str]:
    """The command line that works, with this value for the flag, or in the place of the positional one."""
    positional = [each.name for each in command.flags if each.metadata.get("positional")]
    if name not in positional:
        return [*command.works, f"--{name}={value}"]
    argv, at = list(command.works), positional.index(name)
    places = [number for number, each in enumerate(argv) if not each.startswith("--")]
    argv[places[at]] = value
    return argv


def trials(command: Command) -> Iterator[tuple[str, str, list[str]]]:
    """(flag, what is wrong, command line)."""
    module = importlib.import_module(command.module)
    hints = get_type_hints(getattr(module, command.config))
    for each in command.flags:
        for wrong, value in junk_for(each.name, hints[each.name]).items():
            yield each.name, wrong, with_junk(command, each.name, value)


@pytest.fixture
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place as the working folder, without the network."""
    import huggingface_hub.constants

    monkeypatch.chdir(place)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return place


def test_every_command_is_walked():
    files = [
        *REPOSITORY.glob("*.py"),
        *REPOSITORY.glob("scripts/*.py"),
        *REPOSITORY.glob("scripts/toon/*.py"),
    ]
    programs = [path for path in files if "exit_on_user_error(main)" in path.read_text()]
    modules = {".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in programs}
    # The page has flags of its own checks (tests/unit/app), and needs gradio.
    assert {command.module for command in COMMANDS.values()} == modules - {"scripts.app"}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_works_without_junk(name: str, there: Path):
    """Else the refusals below would prove nothing."""
    with no_models():
        end = call(COMMANDS[name].main, list(COMMANDS[name].works))
    shutil.rmtree("out", ignore_errors=True)
    assert end.code in (None, 0), end


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.faults)])
@pytest.mark.parametrize("name", COMMANDS)
def test_junk_is_refused_in_one_line(name: str, every: int, there: Path):
    """every: that many trials apart are those of a run without --faults; 7 is no divisor of a type's junk."""
    command, wrong_ends = COMMANDS[name], []
    before = content_of(there)
    for flag, wrong, argv in islice(trials(command), 0, None, every):
        tried(f"flags: {name}")
        try:
            with no_models(), as_nobody() if wrong.startswith("unreadable") else nullcontext():
                end = call(command.main, argv)
        except Exception:
            wrong_ends.append(f"--{flag} [{wrong}] {traceback.format_exc().splitlines()[-1][:200]}")
            continue
        legal = {(flag, wrong), (name, flag, wrong)} & LEGAL and end.code in (0, None)
        after = content_of(there)
        if end.refused == legal or (after != before and not legal):
            wrong_ends.append(f"--{flag} [{wrong}] {end.code} {end.stderr[:200]!r} {end.stdout[-60:]!r}")
        else:
            survived(f"flags: {name}")
        if after != before:
            for path in map(Path, sorted(set(after) - set(before), reverse=True)):
                path.rmdir() if path.is_dir() else path.unlink()
    assert not wrong_ends, "\n".join(wrong_ends)

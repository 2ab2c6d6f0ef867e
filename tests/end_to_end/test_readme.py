"""The README's code blocks do what they say when they are pasted, here with few steps; and it stays short."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
# What is added to a command so that it takes seconds; None: not run here (it runs these tests).
SHORT = {
    "bash scripts/quickstart.sh": "",
    "bash scripts/test.sh": None,
    "bash scripts/train_": "--max_train_steps=2 --validation_inference_steps=1",
    "python inference.py": "--num_inference_steps=2 --num_images=1",
    "python videogen.py": "--num_inference_steps=2 --num_frames=2",
    "python -m scripts.evaluate concept": "--num_inference_steps=1 --max_prompts=1 --num_class_images=1",
    "python -m scripts.evaluate dataset": "--dry_run",
    "python -m scripts.export": "",
    "python -m scripts.analyse semantic_space": "--num_class_images=1",
    "python -m scripts.analyse attention_maps": "--num_images=1",
    "python -m scripts.analyse conditional_spread": "--num_phrases=8 --num_images=0",
    "python -m scripts.benchmark": None,
    "python -m scripts.study": "--dry_run",
    "python blip2t.py": "",
}
# What a command in a text block names that a clone does not have -> what stands for it here.
HAVE = {"sd15": "toon", "my/images": "data/dog", "photos/rex": "data/dog"}
NOT_HERE = ("my/", "--vlm")  # nothing can stand for it
# The lines of scripts/quickstart.sh that take long -> the same for seconds.
QUICK = {
    "--validation_inference_steps=25": "--validation_inference_steps=1 --max_train_steps=2",
    "--num_images 3 --batch_size 12": "--num_images 1 --num_inference_steps 2",
    "--images 1 --portraits 8 --num_inference_steps 25": "--images 1 --portraits 1 --num_inference_steps 1",
}


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[str]:
    """The command lines of a bash or text block, continued lines joined, remarks left out."""
    lines = block.replace("\\\n", " ").splitlines()
    stripped = [re.sub(r"\s+#.*", "", line) for line in lines]
    return [line for line in stripped if re.match(r"([A-Z_]+=\S+ )*(python|bash) ", line)]


def shortened(command: str) -> str | None:
    """The command with what makes it short, None for one that is not pasted here."""
    plain = re.sub(r"^([A-Z_]+=\S+ )*", "", command)
    (added,) = {text for beginning, text in SHORT.items() if plain.startswith(beginning)}
    return None if added is None else f"{command} {added}"


def here(command: str) -> str | None:
    """A command of a text block with what a clone has; None where nothing can stand for what it names."""
    for absent, present in HAVE.items():
        command = re.sub(rf"(?<=[= ]){absent}(?![\w/])", present, command)
    return None if any(each in command for each in NOT_HERE) else shortened(command)


def tracked() -> list[str]:
    """The files that a clone has."""
    listed = ["git", "ls-files", "-z"]
    done = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return list(filter(None, done.stdout.split("\0")))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """The tracked files in a folder of their own."""
    folder = tmp_path_factory.mktemp("readme") / "checkout"
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)
    return folder


def paste(command: list[str], checkout: Path, **settings) -> None:
    environment = Path(sys.executable).parents[1]
    (checkout / ".requirements").unlink(missing_ok=True)
    variables = {"PATH": f"{environment / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    variables |= {"VIRTUAL_ENV": str(checkout), "ACCELERATE_USE_CPU": "true", "PYTHONPATH": ""}
    shutil.copy(checkout / "requirements.txt", checkout / ".requirements")  # installed already
    done = subprocess.run(
        command, cwd=checkout, env=os.environ | variables, capture_output=True, text=True, **settings
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def quicken(checkout: Path) -> None:
    """Makes the quickstart take seconds."""
    file = checkout / "scripts" / "quickstart.sh"
    text = file.read_text()
    for slow, quick in QUICK.items():
        assert text.count(slow) == 1, slow
        text = text.replace(slow, quick)
    file.write_text(text)


def printed() -> Iterator[list[str]]:
    """What is pasted: README from its first command to its last, then the guides, one after the other."""
    guides = [REPOSITORY / "docs" / f"{name}.md" for name in ("photographs", "formats", "evaluation")]
    for text in [README, *(guide.read_text(encoding="utf-8") for guide in guides)]:
        found = re.findall(r"^```(bash|python|text)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for language, body in found:
            if language == "python":
                yield [sys.executable, "-c", body]
                continue
            adapt = here if language == "text" else shortened
            yield from (["bash", "-c", command] for command in filter(None, map(adapt, commands(body))))


def test_every_printed_command_is_known_here():
    assert len(list(printed())) > 20 and all(map(printed_once, SHORT))


def printed_once(beginning: str) -> bool:
    texts = [README, *(guide.read_text(encoding="utf-8") for guide in (REPOSITORY / "docs").glob("*.md"))]
    return any(beginning in text for text in texts)


@pytest.mark.slow
def test_every_printed_command_runs_in_the_printed_order(checkout):
    """In one checkout; `pytest -s` shows how far it is."""
    quicken(checkout)
    for command in printed():
        print(command[-1].strip().splitlines()[0], flush=True)
        paste(command, checkout)
    written = ["ckpt/dog/concept.json", "ckpt/teddy_bear_barn/concept.json", "ckpt/rex/concept.json"]
    written += ["outputs/grid.png", "outputs/quickstart/grid.png", "outputs/dog_sd/model_index.json"]
    written += ["outputs/dog_lora/dog_lora.safetensors", "outputs/rex_lora/rex_lora.safetensors"]
    for name in [*written, "results/dog/report.html", "results/dog_4/report.html"]:
        assert (checkout / name).is_file(), name


def test_commands_that_need_other_data_have_flags_that_exist():
    for block in blocks("text"):
        for line in block.splitlines():
            module = re.search(
                r"python -m (scripts\.\w+(?: (?:dataset|concept|generated|train))?) (.*?)(?:  #|$)", line
            )
            if module:
                known = subprocess.run(
                    [sys.executable, "-m", *module[1].split(), "--help"],
                    cwd=REPOSITORY,
                    capture_output=True,
                    text=True,
                ).stdout
                for flag in re.findall(r"--\w+", module[2]):
                    assert flag in known, line


def test_it_is_short_and_its_files_exist():
    assert len(README.encode()) <= 10 * 1024
    names = tracked()
    for target in re.findall(r'(?:src="|\]\()((?!http)[^")]+)', README):
        assert target in names or any(name.startswith(f"{target}/") for name in names), target
    for method in re.findall(r"^\| `(\w+)`", README, re.MULTILINE):
        from utils.config.methods import METHODS

        assert method in METHODS


def test_the_guides_name_files_and_methods_that_exist():
    from utils.config.methods import METHODS

    names = tracked()
    guides = sorted((REPOSITORY / "docs").glob("*.md"))
    assert {guide.stem for guide in guides} >= {"photographs", "methods", "evaluation", "formats"}
    for guide in guides:
        text = guide.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
            path = (guide.parent / target).resolve().relative_to(REPOSITORY.resolve()).as_posix()
            assert path in names or any(name.startswith(f"{path}/") for name in names), (guide.name, target)
    table = (REPOSITORY / "docs" / "methods.md").read_text(encoding="utf-8").partition("## What they are")[2]
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == list(METHODS)

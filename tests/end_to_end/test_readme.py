"""The README's code blocks do what they say when they are pasted, here with few steps; and it stays short."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
# What is added to a command so that it takes seconds. The two set-up commands are run by whoever runs this.
SHORT = {
    "bash scripts/quickstart.sh": None,
    "bash scripts/test.sh": None,
    "bash scripts/train_": "--max_train_steps=2 --validation_inference_steps=1 --overwrite",
    "python inference.py": "--num_inference_steps=2 --num_images=1",
    "python videogen.py": "--num_inference_steps=2 --num_frames=2",
    "python -m scripts.evaluate": "--num_inference_steps=1 --max_prompts=1 --num_class_images=1",
    "python -m scripts.export": "",
    "python blip2t.py": "",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def shortened(line: str) -> str | None:
    """The command with what makes it short, None for one that is not pasted here."""
    command = line.partition("  #")[0].rstrip()
    (added,) = {text for beginning, text in SHORT.items() if command.startswith(beginning)}
    return None if added is None else f"{command} {added}"


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


def test_every_block_runs_when_pasted_in_order(checkout):
    for language, body in re.findall(r"^```(bash|python)\n(.*?)^```", README, re.MULTILINE | re.DOTALL):
        if language == "python":
            paste([sys.executable, "-c", body], checkout)
            continue
        for line in filter(str.strip, body.splitlines()):
            if command := shortened(line):
                paste(["bash", "-c", command], checkout)
    for written in (
        "ckpt/dog/concept.json",
        "ckpt/teddy_bear_barn/concept.json",
    ):
        assert (checkout / written).is_file(), written
    for written in ("outputs/grid.png", "outputs/dog_sd/model_index.json", "results/dog/report.html"):
        assert (checkout / written).is_file(), written
    assert list((checkout / "outputs" / "dog_lora").glob("*.safetensors"))


def test_commands_that_need_other_data_have_flags_that_exist():
    for block in blocks("text"):
        for line in block.splitlines():
            module = re.search(r"python -m (scripts\.\w+) (.*?)(?:  #|$)", line)
            if module:
                known = subprocess.run(
                    [sys.executable, "-m", module[1], "--help"],
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

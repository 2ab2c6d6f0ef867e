"""Damaged base models in every program that loads one: one line, exit 2, nothing written, no code run."""

import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState

import inference
import train_classdiffusion
from scripts import export
from tests.faults.bases import DAMAGE
from tests.faults.commands import call
from tests.faults.shim import survived, tried

# What harms nothing: the command may work.
HARMLESS = {
    "text_encoder of another type",  # CLIPTextModel passes over it
}


def files_of(folder: Path) -> list[Path]:
    """What a command wrote, besides a hidden lock."""
    return [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]


@pytest.mark.parametrize("every", [23, pytest.param(1, marks=pytest.mark.faults)])
@pytest.mark.parametrize("program", ["train", "inference", "export"])
def test_damaged_bases(
    program: str,
    every: int,
    tiny_base: Path,
    tmp_path: Path,
    concept: Path,
    dog_flags: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    base, out, wrong_ends = tmp_path / "sd", tmp_path / "out", []
    drawn = ["--prompt=a dog", f"--base={base}", "--num_inference_steps=1", "--num_images=1"]
    kinds = {  # a LoRA's export reads the UNet's weights alone
        kind: damage
        for kind, damage in DAMAGE.items()
        if program != "export" or (kind.startswith(("unet", "no unet")) and "sample_size" not in kind)
    }
    for kind, damage in islice(kinds.items(), 0, None, every):
        shutil.rmtree(base, ignore_errors=True)
        shutil.copytree(tiny_base, base)
        damage(base)
        shutil.rmtree(out, ignore_errors=True)
        tried(f"damaged base: {program}")
        try:
            if program == "train":
                AcceleratorState._reset_state(reset_partial_state=True)
                GradientState._reset_state()
                flags = dog_flags(out, pretrained_model_name_or_path=base, max_train_steps=1)
                end = call(train_classdiffusion.main, flags)
            elif program == "inference":
                end = call(inference.main, [*drawn, f"--output_dir={out}"])
            else:
                end = call(export.main, [str(concept), str(out), f"--base={base}"])
        except Exception as error:
            wrong_ends.append(f"{kind}: {type(error).__name__} {str(error)[:200]}")
            continue
        fine = end.refused and not files_of(out) or (kind in HARMLESS and end.code == 0)
        if fine and not (base / "PWNED").exists():
            survived(f"damaged base: {program}")
        else:
            wrong_ends.append(f"{kind}: {end.code} {end.stderr[-300:]!r} {files_of(out)}")
    assert not wrong_ends, "\n".join(wrong_ends)

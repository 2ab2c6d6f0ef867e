"""One step of every method at SD 1.5's shape, with random weights, by its preset."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from utils.bases.registry import REPOSITORY
from utils.common.images import save_png
from utils.concepts.formats import read_concept
from utils.config.methods import METHODS

# On one core half a minute a method, the whole UNet 2 with 17 GB of memory and 20 of disk, SVDiff 14
pytestmark = pytest.mark.slow

LIMIT = 24e9  # bytes, of a GPU that many have
ROW, KV, UNET = 768, 19_169_280, 859_520_964
TRAINED = {  # method -> learner -> how many numbers it trains
    "classdiffusion": {"token_rows": ROW, "cross_attention_kv": KV},
    "custom_diffusion": {"token_rows": ROW, "cross_attention_kv": KV},
    "kv_only": {"token_rows": ROW, "cross_attention_kv": KV},
    "textual_inversion": {"token_rows": ROW},
    "dreambooth": {"unet": UNET},
    "two_stage": {"token_rows": ROW, "unet": UNET},
    "xti": {"layer_rows": 16 * ROW},
    "neti": {"mapper": 563_616},
    "svdiff": {"spectral": 222_696},
}


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder with an image of the concept and one of its class, so that none has to be drawn."""
    rng = np.random.default_rng(0)
    for name in ("dog", "class"):
        (tmp_path / name).mkdir()
        noise = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((256, 256))
        save_png(noise, tmp_path / name / "0.png", {"prompt": "a photo of a dog"})
    return tmp_path


@dataclass(frozen=True)
class Done:
    """A command that has ended well. peak: bytes of its memory."""

    output: str
    seconds: float
    peak: int


def run(arguments: list[str], output: Path) -> Done:
    """train_classdiffusion.py in a process of its own, so that its memory is its own."""
    started = time.monotonic()
    with output.open("w+") as file:
        command = [sys.executable, "train_classdiffusion.py", *arguments]
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=file, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        file.seek(0)
        text = file.read()
    assert process.returncode == 0, text[-2000:]
    unit = 1 if sys.platform == "darwin" else 1024
    return Done(text, time.monotonic() - started, used.ru_maxrss * unit)


def flags(method: str, base: Path, images: Path) -> list[str]:
    """The published settings, but for one step of one image, 256 x 256, a stage."""
    few = ["--train_batch_size=1", "--gradient_accumulation_steps=1"]
    few.append(f"--max_train_steps={len(METHODS[method].stages)}")
    if any(stage.prior for stage in METHODS[method].stages):
        few += ["--num_class_images=1", f"--class_data_dir={images}/class"]
    where = [f"--pretrained_model_name_or_path={base}", f"--instance_data_dir={images}/dog"]
    what = [f"--method={method}", "--modifier_token=<new1>", "--cls_token=dog", "--resolution=256"]
    return [*few, *where, *what, f"--output_dir={images}/concept"]


def saved(folder: Path, method: str) -> dict[str, dict[str, Tensor]]:
    """Learner -> what it has trained, as its file holds it: δ without σ, mappers without what is fixed."""
    concept = read_concept(folder)
    learned = {"token_rows": concept.rows, "cross_attention_kv": concept.weights} | concept.parts
    learned = {name: learned[name] for name in TRAINED[method]}
    if "spectral" in learned:
        learned["spectral"] = {k: v for k, v in learned["spectral"].items() if k.endswith(".delta")}
    if "mapper" in learned:
        fixed = ("frequencies", "lengths")
        learned["mapper"] = {k: v for k, v in learned["mapper"].items() if not k.endswith(fixed)}
    return learned


@pytest.mark.parametrize("method", METHODS)
def test_a_step_at_sd15s_shape(method, sd15_base, images):
    done = run(flags(method, sd15_base, images), images / "output.txt")
    print(f"{method}: {done.seconds:.0f} s, {done.peak / 1e9:.1f} GB")
    assert done.peak < LIMIT
    log = [json.loads(line) for line in (images / "concept" / "log.jsonl").read_text().splitlines()]
    assert len(log) == len(METHODS[method].stages)
    assert all(0 < line["loss"] < 100 for line in log)
    learned = saved(images / "concept", method)
    assert {k: sum(v.numel() for v in each.values()) for k, each in learned.items()} == TRAINED[method]
    if "unet" in learned or "spectral" in learned:  # kept as changes: every tensor has one
        assert all(value.any() for each in learned.values() for value in each.values())


def test_every_method_has_its_numbers():
    assert TRAINED.keys() == METHODS.keys()

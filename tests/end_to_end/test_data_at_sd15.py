"""A folder of photographs as they come, learned by SD 1.5's architecture with random weights for 2 steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from utils.bases.registry import REPOSITORY

pytestmark = pytest.mark.slow  # about 3 minutes, 10 GB of memory and 4 GB of disk on 2 cores


def photograph(size: tuple[int, int], seed: int) -> Image.Image:
    """Smooth noise with a disc, the subject, in its middle."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize(size, Image.BICUBIC)
    ImageDraw.Draw(image).ellipse(disc(size), fill=(200, 120, 60))
    return image


def disc(size: tuple[int, int]) -> tuple[int, int, int, int]:
    width, height = size
    return width // 4, height // 4, 3 * width // 4, 3 * height // 4


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A phone's turned JPEG, a wide JPEG with a mask, a cut-out PNG, a square of odd sides, a panorama."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # stored 1200 x 800, seen 800 x 1200
    photograph((1200, 800), 0).save(folder / "IMG_0001.JPG", exif=exif, quality=90)
    photograph((1021, 683), 1).save(folder / "wide.jpeg")
    mask = Image.new("L", (1021, 683))
    ImageDraw.Draw(mask).ellipse(disc(mask.size), fill=255)
    mask.save(folder / "wide.mask.png")
    cut = photograph((601, 749), 2)
    alpha = Image.new("L", cut.size)
    ImageDraw.Draw(alpha).ellipse(disc(cut.size), fill=255)
    cut.putalpha(alpha)
    cut.save(folder / "cut-out.png")
    photograph((333, 331), 3).save(folder / "small.webp")
    photograph((1900, 500), 4).save(folder / "panorama.png")
    (folder / "IMG_0001.txt").write_text("my dog on a lawn, summer, from above\n")
    line = {"file_name": "wide.jpeg", "text": "a photo of a <new1> dog, beach"}
    (folder / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    (folder / "Thumbs.db").write_bytes(b"\0")
    return folder


def test_photographs_with_captions_buckets_and_masks(sd15_base, photographs, tmp_path):
    output_dir, run = tmp_path / "dog", tmp_path / "run.toml"
    run.write_text(
        f"pretrained_model_name_or_path = {json.dumps(str(sd15_base))}\n"
        f"instance_data_dir = {json.dumps(str(photographs))}\n"
        'cls_token = "dog"\nresolution = 256\nmax_train_steps = 2\nmixed_precision = "bf16"\n'
        "buckets = true\nmasked_loss = true\ncaption_dropout = 0.1\nshuffle_captions = true\n"
        'freeze_model = "crossattn"\nema_decay = 0.9\n'
    )
    done = subprocess.run(
        [sys.executable, "train_classdiffusion.py", f"--config={run}", f"--output_dir={output_dir}"],
        cwd=REPOSITORY,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert f"skipped {photographs / 'Thumbs.db'}: not an image" in lines
    assert (
        "captions: 2 of 5 images have their own; cut-out.png, panorama.png, small.webp take the prompt"
        in lines
    )
    assert (
        "masks: in 2 of 5 images the subject alone counts; "
        "IMG_0001.JPG, panorama.png, small.webp without a mask: the whole image"
    ) in lines
    [buckets] = [line for line in lines if line.startswith("buckets: ")]
    assert buckets == "buckets: 192 x 288 (1), 224 x 288 (1), 256 x 256 (1), 288 x 192 (1), 320 x 160 (1)"
    assert f"{photographs / 'panorama.png'} is long: 47% of it is cut off" in lines

    records = [json.loads(line) for line in (output_dir / "log.jsonl").read_text().splitlines()]
    assert len(records) == 2 and all(np.isfinite(list(each.values())).all() for each in records)
    saved = load_file(output_dir / "pytorch_custom_diffusion_weights.safetensors")
    assert len(saved) == 16 * 5  # K, V, Q, out and its bias in each of 16 layers
    assert sum(value.numel() for value in saved.values()) == 19_169_280 + 2 * 12_390_400 + 12_480
    assert {value.dtype for value in saved.values()} == {torch.float32}

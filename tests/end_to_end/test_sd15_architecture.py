"""SD 1.5's exact architecture and vocabulary with random weights: what can be proven with these."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from utils.bases import load_pipeline
from utils.concepts.load import load_concept
from utils.sampling.images import sample

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.slow  # about 5 minutes, 12 GB of memory and 4 GB of disk on 2 cores


def test_trains_saves_reloads_and_samples_at_512_pixels(sd15_base, tmp_path):
    output_dir = tmp_path / "dog"
    command = [sys.executable, "train_classdiffusion.py", f"--pretrained_model_name_or_path={sd15_base}"]
    command += ["--instance_data_dir=data/dog", "--instance_prompt=a photo of a <new1> dog"]
    command += [
        "--modifier_token=<new1>",
        "--cls_token=dog",
        "--use_spl",
        "--spl_weight=1",
        "--resolution=512",
    ]
    command += [
        "--train_batch_size=2",
        "--learning_rate=1e-5",
        "--scale_lr",
        "--hflip",
        "--max_train_steps=2",
    ]
    command += ["--mixed_precision=bf16", f"--output_dir={output_dir}"]
    subprocess.run(command, cwd=REPOSITORY, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})

    saved = load_file(output_dir / "pytorch_custom_diffusion_weights.safetensors")
    assert len(saved) == 32
    assert sum(value.numel() for value in saved.values()) == 19_169_280
    assert {value.dtype for value in saved.values()} == {torch.float32}
    row = load_file(output_dir / "new1.safetensors")["<new1>"]
    assert row.shape == (768,)
    assert (output_dir / "new1.safetensors").stat().st_size < 10_000

    pipeline = load_pipeline(sd15_base, "cpu", "bf16")
    settings = {"num_inference_steps": 2, "guidance_scale": 6.0, "eta": 1.0}
    [before] = sample(pipeline, ["a photo of a dog"], [0], **settings)
    loaded = load_concept(pipeline, output_dir)
    assert loaded.token_ids == {"<new1>": 49408}
    assert len(loaded.merged) == 32
    [after] = sample(pipeline, ["a photo of a <new1> dog"], [0], **settings)
    assert after.size == before.size == (512, 512)
    assert np.abs(np.asarray(after, int) - np.asarray(before, int)).max() > 0

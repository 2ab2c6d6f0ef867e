"""SD 1.5's exact architecture and vocabulary with random weights: what can be proven with these."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

from tests.clip_vocabulary import write_clip_tokenizer
from utils.bases import load_pipeline
from utils.concepts.load import load_concept
from utils.sampling.images import sample

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.slow  # about 5 minutes, 12 GB of memory and 4 GB of disk on 2 cores


def sd15_pipeline(folder: Path, side: int = 64) -> StableDiffusionPipeline:
    """The values of stable-diffusion-v1-5's configuration files; the rest are the classes' defaults.

    side: of the latents that it draws unless asked otherwise.
    """
    torch.manual_seed(0)
    tokenizer = write_clip_tokenizer(folder / "words")
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            projection_dim=768,
            bos_token_id=0,
            eos_token_id=2,
            pad_token_id=1,
        )
    )
    unet = UNet2DConditionModel(sample_size=side, cross_attention_dim=768)
    vae = AutoencoderKL(
        sample_size=512,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    parts = {"text_encoder": text_encoder, "unet": unet, "vae": vae, "scheduler": scheduler}
    return StableDiffusionPipeline(
        **parts,
        tokenizer=tokenizer,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def test_trains_saves_reloads_and_samples_at_512_pixels(tmp_path):
    base, output_dir = tmp_path / "sd15", tmp_path / "dog"
    sd15_pipeline(tmp_path).save_pretrained(base)
    command = [sys.executable, "train_classdiffusion.py", f"--pretrained_model_name_or_path={base}"]
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

    pipeline = load_pipeline(base, "cpu", "bf16")
    settings = {"num_inference_steps": 2, "guidance_scale": 6.0, "eta": 1.0}
    [before] = sample(pipeline, ["a photo of a dog"], [0], **settings)
    loaded = load_concept(pipeline, output_dir)
    assert loaded.token_ids == {"<new1>": 49408}
    assert len(loaded.merged) == 32
    [after] = sample(pipeline, ["a photo of a <new1> dog"], [0], **settings)
    assert after.size == before.size == (512, 512)
    assert np.abs(np.asarray(after, int) - np.asarray(before, int)).max() > 0

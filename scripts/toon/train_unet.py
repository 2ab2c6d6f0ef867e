"""Train the toon world's UNet2DConditionModel on cached latents and assemble data/toon/sd.

B pictures, h = w latent pixels, L tokens, D text width.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel, UNetMotionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from scripts.toon.train_clip import WIDTH
from scripts.toon.training import (
    begin,
    bfloat16_forward,
    cached,
    device,
    fit,
    generator,
    scenes,
    subject_mask,
    subject_weighted_mse,
    to_pixels,
)
from scripts.toon.world import Scene, caption, without_subject
from utils.bases.text import tokenize
from utils.errors import exit_on_user_error
from utils.training.losses import target_of

# Timesteps are drawn as 1000 · sigmoid(1.2 · N(0, 1) - 0.6), after the logit-normal of Esser et al. 2024
# (arXiv 2403.03206): most of them where shapes and small things are decided, a quarter below 200.
TIMESTEP_MEAN, TIMESTEP_SPREAD = -0.6, 1.2
CAPTION_DROPOUT = 0.1  # the empty caption, for classifier-free guidance


def build(side: int, channels: tuple[int, ...]) -> UNet2DConditionModel:
    """Cross-attention below the first level; there is none at the full latent resolution."""
    depth = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=side,
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=16,
        attention_head_dim=4,  # diffusers' name for the number of heads, as in SD 1.5
        cross_attention_dim=WIDTH,
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * depth),
        up_block_types=(*["CrossAttnUpBlock2D"] * depth, "UpBlock2D"),
    )


def noise_schedule() -> DDIMScheduler:
    """SD 1.5's noise levels with SD 2's target: the velocity, which is the picture where all is noise.
    A small network learns to compose from it sooner than from the noise."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def to_device(unet: UNet2DConditionModel | UNetMotionModel) -> None:
    """Laid out for speed. On a CPU PyTorch's fused attention is slow, most of it backwards: a fifth of an
    image UNet's step, two fifths of a motion UNet's."""
    unet.to(device(), memory_format=torch.channels_last)
    if device().type == "cpu":
        unet.set_attn_processor(AttnProcessor())


@torch.no_grad()
def latents_of(vae: AutoencoderKL, seed: str, count: int, size: int) -> Iterator[Tensor]:
    """(64, 9, h, w) fp16 at a time: mean and standard deviation of the scaled latents, and the mask."""
    for i in tqdm(range(0, count, 64), desc="latents", mininterval=10):
        batch = scenes(f"{seed}/{i}", min(64, count - i))
        pixels = to_pixels(batch, size)
        with torch.autocast(device().type, torch.bfloat16):
            latents = vae.encode(pixels.to(device())).latent_dist
        scaled = torch.cat([latents.mean, latents.std], 1).float() * vae.config.scaling_factor
        empty = to_pixels([without_subject(scene) for scene in batch], size)
        mask = subject_mask(pixels, empty, scaled.shape[-1])
        yield torch.cat([scaled.cpu(), mask], 1).half()


def share(scene: Scene) -> int:
    """How often a picture is drawn: worn things and poses are rarer than the other words, and smaller."""
    return 1 + (scene.worn != "nothing") + (scene.pose != "standing")


def assemble(folder: Path, unet: UNet2DConditionModel, scheduler: DDIMScheduler) -> None:
    """Write the UNet, the scheduler and model_index.json beside the vae, tokenizer and text encoder."""
    unet.half().save_pretrained(folder / "unet", max_shard_size="15MB")
    scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, default=Path("data/toon/sd"))
    parser.add_argument("--work_dir", type=Path, default=Path("toon_build"), help="checkpoints")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--pictures", type=int, default=80_000, help="distinct training scenes")
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 128, 192])
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init_from", type=Path, help="start from this UNet's folder")
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile: a third faster, needs a C++ compiler"
    )
    args = parser.parse_args()
    begin(args, "unet")
    torch.manual_seed(args.seed)

    tokenizer = CLIPTokenizer.from_pretrained(args.output_dir / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(args.output_dir / "text_encoder", dtype=torch.float32)
    text_encoder.to(device()).eval().requires_grad_(False)
    vae = (
        AutoencoderKL.from_pretrained(args.output_dir / "vae", torch_dtype=torch.float32).to(device()).eval()
    )
    data = f"{args.seed}/unet"
    encoded = latents_of(vae, data, args.pictures, args.resolution)
    latents = cached(args.work_dir / "latents.pt", encoded)  # (pictures, 9, h, w)
    pictures = [
        scene
        for i in range(0, args.pictures, 64)
        for scene in scenes(f"{data}/{i}", min(64, args.pictures - i))
    ]
    shares = torch.tensor([float(share(scene)) for scene in pictures])
    scheduler = noise_schedule()
    unet = build(latents.shape[-1], tuple(args.channels))
    if args.init_from:
        start = UNet2DConditionModel.from_pretrained(args.init_from, torch_dtype=torch.float32)
        unet.load_state_dict(start.state_dict())
    to_device(unet)

    predict = bfloat16_forward(unet, args.compile)

    def loss_of(step: int) -> Tensor:
        rng = generator(f"{data}/step/{step}")
        chosen = torch.multinomial(shares, args.batch_size, replacement=True, generator=rng)
        mean, std, mask = latents[chosen].float().split([4, 4, 1], dim=1)
        clean = (mean + std * torch.randn(mean.shape, generator=rng)).to(device())  # (B, 4, h, w)
        noise = torch.randn(mean.shape, generator=rng).to(device())
        logits = TIMESTEP_MEAN + TIMESTEP_SPREAD * torch.randn(args.batch_size, generator=rng)
        timesteps = (1000 * torch.sigmoid(logits)).long().clamp(max=999).to(device())
        words = random.Random(f"{data}/captions/{step}")
        captions = ["" if words.random() < CAPTION_DROPOUT else caption(pictures[i], words) for i in chosen]
        with torch.no_grad():
            text = text_encoder(tokenize(tokenizer, captions).to(device()))[0]  # (B, L, D)
        noisy = scheduler.add_noise(clean, noise, timesteps).to(memory_format=torch.channels_last)
        velocity = predict(noisy, timesteps, text)
        target = target_of(scheduler, clean, noise, timesteps)
        return subject_weighted_mse(velocity, target, mask.to(device()))

    fit(unet, loss_of, args.steps, args.lr, args.work_dir / "unet.pt")
    assemble(args.output_dir, unet, scheduler)
    print(f"saved {args.output_dir}")


if __name__ == "__main__":
    exit_on_user_error(main)

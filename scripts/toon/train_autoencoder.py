"""Train the toon world's AutoencoderKL on fresh renders and save it in diffusers' format."""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from scripts.toon.training import begin, device, fit, generator, scenes, to_pixels
from utils.errors import exit_on_user_error

KL_WEIGHT = 5e-4


def build(size: int, channels: tuple[int, ...] = (16, 48, 128)) -> AutoencoderKL:
    return AutoencoderKL(
        sample_size=size,
        latent_channels=4,
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=["DownEncoderBlock2D"] * len(channels),
        up_block_types=["UpDecoderBlock2D"] * len(channels),
        mid_block_add_attention=False,
        force_upcast=False,
    )


@torch.no_grad()
def latent_std(vae: AutoencoderKL, size: int) -> float:
    pixels = to_pixels(scenes("latent-std", 256), size).to(vae.device)
    return vae.encode(pixels).latent_dist.sample(generator("latent-std")).std().item()


@torch.no_grad()
def psnr(vae: AutoencoderKL, size: int, count: int = 512) -> float:
    """Peak signal-to-noise ratio in dB of held-out renders, from the mean squared error over all of them."""
    errors = []
    for i in range(0, count, 64):
        pixels = to_pixels(scenes(f"psnr/{i}", 64, held_out=True), size).to(vae.device)
        restored = vae.decode(vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
        errors.append(F.mse_loss(restored, pixels).item() / 4)  # [-1, 1] -> [0, 1]
    return -10 * torch.tensor(errors).mean().log10().item()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, default=Path("data/toon/sd/vae"))
    parser.add_argument("--work_dir", type=Path, default=Path("toon_build"), help="checkpoints")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    begin(args, "autoencoder")
    torch.manual_seed(args.seed)
    vae = build(args.resolution).to(device())

    def autoencode(pixels, noise):
        """Also decodes the latents at half their size: what keeps them smooth, so easy to learn for a UNet
        (scale equivariance, Skorokhodov et al. 2025, arXiv 2502.14831)."""
        latents = vae.encode(pixels).latent_dist
        z = latents.mean + latents.std * noise
        return vae.decode(z).sample, vae.decode(F.avg_pool2d(z, 2)).sample, latents.mean, latents.logvar

    side = args.resolution // 4

    def loss_of(step: int) -> torch.Tensor:
        batch = scenes(f"{args.seed}/autoencoder/{step}", args.batch_size)
        pixels = to_pixels(batch, args.resolution).to(device())
        noise = torch.randn(
            args.batch_size, 4, side, side, generator=generator(f"{args.seed}/autoencoder/noise/{step}")
        )
        with torch.autocast(device().type, torch.bfloat16):
            restored, small, mean, logvar = autoencode(pixels, noise.to(device()))
        restored, small, mean, logvar = (part.float() for part in (restored, small, mean, logvar))
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = F.mse_loss(restored, pixels) + 0.2 * F.l1_loss(restored, pixels)
        return loss + 0.25 * F.mse_loss(small, F.avg_pool2d(pixels, 2)) + KL_WEIGHT * kl

    fit(vae, loss_of, args.steps, args.lr, args.work_dir / "autoencoder.pt")
    vae.register_to_config(scaling_factor=1 / latent_std(vae, args.resolution))
    print(f"autoencoder: {psnr(vae, args.resolution):.2f} dB on 512 held-out renders")
    vae.half().save_pretrained(args.output_dir)
    print(f"saved {args.output_dir}")


if __name__ == "__main__":
    exit_on_user_error(main)

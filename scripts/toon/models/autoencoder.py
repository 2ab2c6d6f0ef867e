"""The toon world's AutoencoderKL: its size, its loss on fresh renders, and how well it restores them.

B images, S their side, h = w = S / 4 latent pixels.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from scripts.toon.models.flags import AutoencoderFlags
from scripts.toon.models.training import begin, device, fit, generator, save, scenes, to_pixels

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


def autoencode(vae: AutoencoderKL, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(restored (B, 3, S, S), restored from half-size latents (B, 3, S/2, S/2), mean, log variance).

    The latents at half their size are what keeps them smooth, so easy to learn for a UNet (scale
    equivariance, Skorokhodov et al. 2025, arXiv 2502.14831). noise: (B, 4, h, w).
    """
    latents = vae.encode(pixels).latent_dist
    z = latents.mean + latents.std * noise
    return vae.decode(z).sample, vae.decode(F.avg_pool2d(z, 2)).sample, latents.mean, latents.logvar


def batch_of(data: str, step: int, size: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Renders (B, 3, S, S) and noise (B, 4, S/4, S/4), functions of (data, step) alone."""
    pixels = to_pixels(scenes(f"{data}/{step}", batch_size), size).to(device())
    noise = torch.randn(batch_size, 4, size // 4, size // 4, generator=generator(f"{data}/noise/{step}"))
    return pixels, noise.to(device())


def loss_at(vae: AutoencoderKL, size: int, batch_size: int, seed: int) -> Callable[[int], Tensor]:
    """The loss of a step, a function of (seed, step) alone."""

    def loss_of(step: int) -> Tensor:
        pixels, noise = batch_of(f"{seed}/autoencoder", step, size, batch_size)
        with torch.autocast(device().type, torch.bfloat16):
            parts = autoencode(vae, pixels, noise)
        restored, small, mean, logvar = (part.float() for part in parts)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = F.mse_loss(restored, pixels) + 0.2 * F.l1_loss(restored, pixels)
        return loss + 0.25 * F.mse_loss(small, F.avg_pool2d(pixels, 2)) + KL_WEIGHT * kl

    return loss_of


def decoder_loss_at(vae: AutoencoderKL, size: int, batch_size: int, seed: int) -> Callable[[int], Tensor]:
    """`loss_at` for the decoder alone: the latents stay what a UNet has learned."""

    def loss_of(step: int) -> Tensor:
        pixels, noise = batch_of(f"{seed}/decoder", step, size, batch_size)
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist
        restored = vae.decode(latents.mean + latents.std * noise).sample
        return F.mse_loss(restored, pixels) + 0.2 * F.l1_loss(restored, pixels)

    return loss_of


def train(config: AutoencoderFlags) -> None:
    """Train the AutoencoderKL on fresh renders, or only its decoder, and save it in diffusers' format."""
    name = "decoder" if config.decoder_of else "autoencoder"
    begin(config, name)
    torch.manual_seed(config.seed)
    size, state = config.resolution, config.work_dir / f"{name}.pt"
    if config.decoder_of:
        vae = AutoencoderKL.from_pretrained(config.decoder_of, torch_dtype=torch.float32).to(device())
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
        decoder = torch.nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})
        loss_of = decoder_loss_at(vae, size, config.batch_size, config.seed)
        fit(decoder, loss_of, config.steps, config.lr, state)
    else:
        vae = build(size).to(device())
        fit(vae, loss_at(vae, size, config.batch_size, config.seed), config.steps, config.lr, state)
        vae.register_to_config(scaling_factor=1 / latent_std(vae, size))
    print(f"autoencoder: {psnr(vae, size):.2f} dB on 512 held-out renders")
    save(vae, config.output_dir)
    print(f"saved {config.output_dir}")

"""Train the toon world's AutoencoderKL on fresh renders and save it in diffusers' format."""

from dataclasses import dataclass
from pathlib import Path

from scripts.toon.models.flags import TrainingFlags, rate_option, steps_option
from utils.common.errors import exit_on_user_error
from utils.common.flags import option, parse


@dataclass(frozen=True)
class Flags(TrainingFlags):
    """The flags of this command."""

    output_dir: Path = option(Path("data/toon/sd/vae"), "folder of the model")
    steps: int = steps_option(8000)
    batch_size: int = option(8, "images a step", minimum=1)
    lr: float = rate_option(1e-3)
    decoder_of: Path | None = option(
        None,
        "train the decoder of the model in this folder; latents stay as they are",
        exists=True,
    )


def main(argv: list[str] | None = None) -> None:
    config = parse(Flags, argv, __doc__)
    import torch
    from diffusers import AutoencoderKL

    from scripts.toon.models.autoencoder import build, decoder_loss_at, latent_std, loss_at, psnr
    from scripts.toon.models.training import begin, device, fit, save

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


if __name__ == "__main__":
    exit_on_user_error(main)

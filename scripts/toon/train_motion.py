"""Train the toon world's MotionAdapter on animated clips, through the frozen UNet of data/toon/sd."""

from dataclasses import dataclass
from pathlib import Path

from scripts.toon.models.flags import TrainingFlags, init_option, rate_option, steps_option
from utils.common.errors import exit_on_user_error
from utils.common.flags import option, parse


@dataclass(frozen=True)
class Flags(TrainingFlags):
    """The flags of this command."""

    base: Path = option(Path("data/toon/sd"), "pipeline whose UNet is animated", exists=True)
    output_dir: Path = option(Path("data/toon/motion_adapter"), "folder of the model")
    clips: int = option(4000, "distinct training clips", minimum=1)
    steps: int = steps_option(10000)
    batch_size: int = option(2, "clips a step", minimum=1)
    lr: float = rate_option(1e-3)
    init_from: Path | None = init_option()


def main(argv: list[str] | None = None) -> None:
    config = parse(Flags, argv, __doc__)
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, MotionAdapter, UNet2DConditionModel

    from scripts.toon.models.motion import build, latents_of, loss_at, motion_unet
    from scripts.toon.models.training import begin, cached, device, fit, save
    from scripts.toon.models.unet import text_model

    begin(config, "motion")
    torch.manual_seed(config.seed)
    base, data = config.base, f"{config.seed}/motion"
    vae = AutoencoderKL.from_pretrained(base / "vae", torch_dtype=torch.float32).to(device()).eval()
    scheduler = DDIMScheduler.from_pretrained(base / "scheduler")
    images = UNet2DConditionModel.from_pretrained(base / "unet", torch_dtype=torch.float32)
    adapter = build(images)
    if config.init_from:
        start = MotionAdapter.from_pretrained(config.init_from, torch_dtype=torch.float32)
        adapter.load_state_dict(start.state_dict())
    unet = motion_unet(images, adapter)
    encoded = latents_of(vae, data, config.clips, config.resolution)
    latents = cached(config.work_dir / "motion_latents.pt", encoded)
    loss_of = loss_at(unet, scheduler, text_model(base), latents, config.batch_size, data)
    state = config.work_dir / "motion.pt"
    fit(adapter, loss_of, config.steps, config.lr, state, warmup=50, ema_decay=0.998)
    save(adapter, config.output_dir)
    scheduler.save_pretrained(config.output_dir)  # its noise levels, for utils.sampling.clips
    size = sum(parameter.numel() for parameter in adapter.parameters())
    print(f"saved {config.output_dir}: {size / 1e6:.1f} million parameters")


if __name__ == "__main__":
    exit_on_user_error(main)

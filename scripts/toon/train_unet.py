"""Train the toon world's UNet2DConditionModel on cached latents and assemble data/toon/sd."""

from dataclasses import dataclass
from pathlib import Path

from scripts.toon.models.flags import TrainingFlags, init_option, rate_option, steps_option
from utils.common.errors import UserError, exit_on_user_error
from utils.common.flags import option, parse


@dataclass(frozen=True)
class Flags(TrainingFlags):
    """The flags of this command."""

    output_dir: Path = option(Path("data/toon/sd"), "pipeline without its UNet", exists=True)
    features_of: Path = option(Path("data/toon/dino"), "DINO or CLIP whose features to hold", exists=True)
    images: int = option(20_000, "distinct training scenes", minimum=1)
    channels: tuple[int, ...] = option((64, 128, 192), "of each level", minimum=16, several=True)
    steps: int = steps_option(10_000)
    batch_size: int = option(16, "images a step", minimum=1)
    lr: float = rate_option(6e-4)
    init_from: Path | None = init_option()
    align_weight: float = option(0.5, "of the alignment; 0: none", minimum=0)
    subject_weight: float = option(4.0, "of the loss where the subject is", minimum=1)
    low_timesteps: bool = option(False, "most draws at little noise")
    compile: bool = option(False, "a sixth faster, needs a C++ compiler")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.channels) < 2 or any(width % 16 for width in self.channels):
            raise UserError(
                f"--channels {' '.join(map(str, self.channels))}: give two or more multiples of 16"
            )


def main(argv: list[str] | None = None) -> None:
    config = parse(Flags, argv, __doc__)
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from scripts.toon.models import unet as toon
    from scripts.toon.models.training import begin, cached, device, fit, scenes

    begin(config, "unet")
    torch.manual_seed(config.seed)
    vae = AutoencoderKL.from_pretrained(config.output_dir / "vae", torch_dtype=torch.float32)
    features_of = toon.patch_model(config.features_of)
    data, count = f"{config.seed}/unet", config.images
    shown = (data, count, config.resolution)
    latents = cached(config.work_dir / "latents.pt", toon.latents_of(vae.to(device()).eval(), *shown))
    patches = cached(config.work_dir / "patches.pt", toon.patches_of(features_of, *shown))
    batches = (scenes(f"{data}/{i}", min(64, count - i)) for i in range(0, count, 64))
    drawn = [scene for batch in batches for scene in batch]
    unet = toon.build(latents.shape[-1], config.channels)
    if config.init_from:
        start = UNet2DConditionModel.from_pretrained(config.init_from, torch_dtype=torch.float32)
        unet.load_state_dict(start.state_dict())
    toon.to_device(unet)
    model = toon.AlignedUNet(unet, patches.shape[1]).to(device())
    if config.compile:
        model.compile()
    scheduler, encode = toon.noise_schedule(), toon.text_model(config.output_dir)
    examples = (drawn, latents, toon.standardised(patches))
    recipe = toon.Recipe(config.align_weight, config.subject_weight, config.low_timesteps)
    loss_of = toon.aligned_loss(model, scheduler, encode, *examples, config.batch_size, data, recipe)
    fit(model, loss_of, config.steps, config.lr, config.work_dir / "unet.pt")
    toon.assemble(config.output_dir, unet, scheduler)
    print(f"saved {config.output_dir}")


if __name__ == "__main__":
    exit_on_user_error(main)

"""Train the toon world's DINO: a ViTModel whose CLS token separates individuals, whatever the scene."""

from dataclasses import dataclass
from pathlib import Path

from scripts.toon.models.flags import TrainingFlags, rate_option, steps_option
from utils.common.errors import exit_on_user_error
from utils.common.flags import option, parse


@dataclass(frozen=True)
class Flags(TrainingFlags):
    """The flags of this command."""

    output_dir: Path = option(Path("data/toon/dino"), "folder of the model")
    steps: int = steps_option(1600)
    batch_size: int = option(64, "images a step: two of each individual", minimum=4, multiple=4)
    lr: float = rate_option(1e-3)


def main(argv: list[str] | None = None) -> None:
    config = parse(Flags, argv, __doc__)
    import torch
    from transformers import ViTImageProcessorPil

    from scripts.toon.models.dino import BICUBIC, MEAN, STD, build, loss_at, report
    from scripts.toon.models.training import begin, device, fit, save

    begin(config, "dino")
    torch.manual_seed(config.seed)
    size = config.resolution
    model = build(size).to(device())
    loss_of = loss_at(model, size, config.batch_size, config.seed)
    fit(model, loss_of, config.steps, config.lr, config.work_dir / "dino.pt", weight_decay=0.05)
    report(model, size, each=20, count=4)
    save(model, config.output_dir)
    square = {"height": size, "width": size}
    processor = ViTImageProcessorPil(size=square, resample=BICUBIC, image_mean=MEAN, image_std=STD)
    processor.save_pretrained(config.output_dir)
    print(f"saved {config.output_dir}")


if __name__ == "__main__":
    exit_on_user_error(main)

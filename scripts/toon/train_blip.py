"""Train the toon world's BLIP, which scores how well an image fits a caption, and save it."""

from dataclasses import dataclass
from pathlib import Path

from scripts.toon.models.flags import TrainingFlags, rate_option, steps_option
from utils.common.errors import exit_on_user_error
from utils.common.flags import option, parse


@dataclass(frozen=True)
class Flags(TrainingFlags):
    """The flags of this command."""

    output_dir: Path = option(Path("data/toon/blip"), "folder of the model")
    steps: int = steps_option(4000)
    batch_size: int = option(48, "images a step, a multiple of 4", minimum=4, multiple=4)
    lr: float = rate_option(7e-4)


def main(argv: list[str] | None = None) -> None:
    config = parse(Flags, argv, __doc__)
    import torch
    from transformers import BlipImageProcessorPil, BlipProcessor

    from scripts.toon.models.blip import build, loss_at, make_tokenizer, one_thing_wrong, retrieval
    from scripts.toon.models.clip import MEAN, STD
    from scripts.toon.models.training import begin, device, fit, save

    begin(config, "blip")
    torch.manual_seed(config.seed)
    size, tokenizer = config.resolution, make_tokenizer()
    blip = build(tokenizer, size).to(device())
    loss_of = loss_at(blip, tokenizer, size, config.batch_size, config.seed)
    fit(blip, loss_of, config.steps, config.lr, config.work_dir / "blip.pt", weight_decay=0.05)
    hits = retrieval(blip, tokenizer, size)
    print(f"blip: {hits:.1%} of 1,024 held-out images find their caption among 128")
    preferred, decided = one_thing_wrong(blip, tokenizer, size)
    print(f"blip: {preferred:.1%} of unseen images prefer their caption to one with one thing wrong (ITC)")
    print(f"blip: the match head (ITM) decides {decided:.1%} of such pairs rightly")
    save(blip, config.output_dir)
    square = {"height": size, "width": size}
    images = BlipImageProcessorPil(size=square, image_mean=MEAN, image_std=STD)
    BlipProcessor(images, tokenizer).save_pretrained(config.output_dir)
    print(f"saved {config.output_dir}")


if __name__ == "__main__":
    exit_on_user_error(main)

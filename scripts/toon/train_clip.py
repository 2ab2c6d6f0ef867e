"""Train the toon world's CLIPModel contrastively; its text tower becomes the text encoder of data/toon/sd."""

from dataclasses import dataclass
from pathlib import Path

from scripts.toon.models.flags import TrainingFlags, init_option, rate_option, steps_option
from utils.common.errors import exit_on_user_error
from utils.common.flags import option, parse


@dataclass(frozen=True)
class Flags(TrainingFlags):
    """The flags of this command."""

    output_dir: Path = option(Path("data/toon"), "folder of clip and sd; sd/tokenizer is there already")
    steps: int = steps_option(2000)
    batch_size: int = option(128, "images a step: scenes and their twins", minimum=2, multiple=2)
    lr: float = rate_option(1e-3)
    init_from: Path | None = init_option()


def main(argv: list[str] | None = None) -> None:
    config = parse(Flags, argv, __doc__)
    import torch
    from torch import nn
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    from scripts.toon.models import clip as toon
    from scripts.toon.models.training import begin, check_present, device, fit, save

    folder, size = config.output_dir, config.resolution
    check_present(folder / "sd" / "tokenizer", "python -m scripts.toon.tokenizer")
    begin(config, "clip")
    torch.manual_seed(config.seed)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "sd" / "tokenizer")
    clip = toon.build(tokenizer, size)
    if config.init_from:
        clip.load_state_dict(CLIPModel.from_pretrained(config.init_from, dtype=torch.float32).state_dict())
    clip.to(device())
    readers = nn.Linear(toon.WIDTH, sum(map(len, toon.VALUES.values()))).to(device())
    loss_of = toon.loss_at(clip, readers, tokenizer, size, config.batch_size, config.seed)
    trained = nn.ModuleList([clip, readers])
    fit(trained, loss_of, config.steps, config.lr, config.work_dir / "clip.pt", weight_decay=0.05)
    hits = toon.retrieval(clip, tokenizer, size)
    print(f"clip: {hits:.1%} of 1,024 held-out images find their caption among 128")
    named = toon.animals_named(clip, tokenizer, size)
    print(f"clip: {named:.1%} of held-out animals prefer their name to the four others'")
    save(toon.text_encoder_of(clip), folder / "sd" / "text_encoder")
    save(clip, folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    square = {"height": size, "width": size}
    CLIPImageProcessor(
        size=square, crop_size=square, image_mean=toon.MEAN, image_std=toon.STD
    ).save_pretrained(folder / "clip")
    print(f"saved {folder / 'clip'} and {folder / 'sd' / 'text_encoder'}")


if __name__ == "__main__":
    exit_on_user_error(main)

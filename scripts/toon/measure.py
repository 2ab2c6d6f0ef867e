"""Measure the embedded models that images of the world alone can judge: the numbers of data/toon/README.md.

scripts.toon.build prints the same of each model at the end of its training; the UNet has prompt_accuracy.py,
the motion adapter motion_accuracy.py.
"""

from dataclasses import dataclass
from pathlib import Path

from utils.common.errors import exit_on_user_error
from utils.common.flags import option, parse

SIZE = 64


@dataclass(frozen=True)
class Flags:
    """The flags of this command."""

    models: Path = option(Path("data/toon"), "folder with sd, clip, recogniser, part_reader, blip and dino")


def main(argv: list[str] | None = None) -> None:
    config = parse(Flags, argv, __doc__)
    from scripts.toon.models.training import check_present

    for name in ("sd", "clip", "recogniser", "part_reader", "blip", "dino"):
        check_present(config.models / name, "python -m scripts.toon.build all")
    from utils.bases.devices import without_progress_bars

    with without_progress_bars():
        measure(config.models)


def measure(models: Path) -> None:
    """Prints a line or two for each model."""
    import torch
    from diffusers import AutoencoderKL
    from transformers import (
        BertTokenizer,
        BlipForImageTextRetrieval,
        CLIPModel,
        CLIPTokenizer,
        ResNetForImageClassification,
        ViTModel,
    )

    from scripts.toon.models import autoencoder, blip, clip, dino, part_reader, recogniser

    vae = AutoencoderKL.from_pretrained(models / "sd" / "vae", torch_dtype=torch.float32).eval()
    print(f"autoencoder: {autoencoder.psnr(vae, SIZE):.2f} dB on 512 held-out renders", flush=True)

    model = CLIPModel.from_pretrained(models / "clip", dtype=torch.float32).eval()
    words = CLIPTokenizer.from_pretrained(models / "clip")
    print(f"clip: {clip.retrieval(model, words, SIZE):.1%} of 1,024 find their caption among 128")
    print(f"clip: {clip.animals_named(model, words, SIZE):.1%} of animals prefer their name", flush=True)

    model = ResNetForImageClassification.from_pretrained(models / "recogniser", dtype=torch.float32).eval()
    shares = recogniser.accuracy(model, SIZE)
    print("recogniser: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items()), flush=True)

    shares = part_reader.accuracy(models / "part_reader", SIZE)
    print("part reader: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items()), flush=True)

    model = BlipForImageTextRetrieval.from_pretrained(models / "blip", dtype=torch.float32).eval()
    words = BertTokenizer.from_pretrained(models / "blip")
    preferred, decided = blip.one_thing_wrong(model, words, SIZE)
    print(f"blip: {blip.retrieval(model, words, SIZE):.1%} of 1,024 find their caption among 128")
    print(f"blip: {preferred:.1%} prefer it to one with one thing wrong; match head right {decided:.1%}")

    model = ViTModel.from_pretrained(models / "dino", add_pooling_layer=False, dtype=torch.float32).eval()
    dino.report(model, SIZE, each=20, count=4)


if __name__ == "__main__":
    exit_on_user_error(main)

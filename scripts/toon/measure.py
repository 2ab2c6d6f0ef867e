"""Measure the embedded models that pictures of the world alone can judge: the numbers of data/toon/README.md.

Each training program prints the same of its own model at the end; the UNet has prompt_accuracy.py, the motion
adapter motion_accuracy.py.
"""

from pathlib import Path

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

from scripts.toon import recogniser, train_autoencoder, train_blip, train_clip, train_dino

TOON = Path("data/toon")
SIZE = 64


@torch.no_grad()
def main() -> None:
    vae = AutoencoderKL.from_pretrained(TOON / "sd" / "vae", torch_dtype=torch.float32).eval()
    print(f"autoencoder: {train_autoencoder.psnr(vae, SIZE):.2f} dB on 512 held-out renders", flush=True)

    clip = CLIPModel.from_pretrained(TOON / "clip", dtype=torch.float32).eval()
    words = CLIPTokenizer.from_pretrained(TOON / "clip")
    print(f"clip: {train_clip.retrieval(clip, words, SIZE):.1%} of 1,024 find their caption among 128")
    print(f"clip: {train_clip.animals_named(clip, words, SIZE):.1%} of animals prefer their name", flush=True)

    judge = ResNetForImageClassification.from_pretrained(TOON / "recogniser", dtype=torch.float32).eval()
    shares = recogniser.accuracy(judge, SIZE)
    print("recogniser: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items()), flush=True)

    blip = BlipForImageTextRetrieval.from_pretrained(TOON / "blip", dtype=torch.float32).eval()
    words = BertTokenizer.from_pretrained(TOON / "blip")
    preferred, decided = train_blip.one_thing_wrong(blip, words, SIZE)
    print(f"blip: {train_blip.retrieval(blip, words, SIZE):.1%} of 1,024 find their caption among 128")
    print(
        f"blip: {preferred:.1%} prefer it to one with one thing wrong; match head right {decided:.1%}",
        flush=True,
    )

    dino = ViTModel.from_pretrained(TOON / "dino", add_pooling_layer=False, dtype=torch.float32).eval()
    train_dino.report(dino, SIZE, each=20, count=4)


if __name__ == "__main__":
    main()

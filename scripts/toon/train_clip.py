"""Train the toon world's CLIPModel contrastively; its text tower becomes the text encoder of data/toon/sd.

B pictures and captions, L tokens, D text width.
"""

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

from scripts.toon.training import device, fit, scenes, to_pixels
from scripts.toon.world import Scene, caption
from utils.models import tokenize

WIDTH = 128
MEAN = STD = [0.5, 0.5, 0.5]


def build(tokenizer: CLIPTokenizer, size: int) -> CLIPModel:
    """Two towers of 4 x 128.

    The text configuration has eos_token_id = 2 as SD 1.5's has, so CLIP pools at the highest id of a row:
    EOS, until a modifier token is added. The semantic preservation loss must not fall for that.
    """
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    text = tower | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "projection_dim": WIDTH,
    }
    vision = tower | {"image_size": size, "patch_size": size // 8, "projection_dim": WIDTH}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def captions_of(batch: list[Scene], seed: str) -> list[str]:
    return [caption(scene, random.Random(f"{seed}/{i}")) for i, scene in enumerate(batch)]


def text_encoder_of(clip: CLIPModel) -> CLIPTextModel:
    """The text tower as the CLIPTextModel that a StableDiffusionPipeline holds."""
    encoder = CLIPTextModel(clip.config.text_config)
    encoder.load_state_dict(clip.text_model.state_dict())
    return encoder.eval()


@torch.no_grad()
def retrieval(
    clip: CLIPModel, tokenizer: CLIPTokenizer, size: int, batches: int = 8, batch_size: int = 128
) -> float:
    """Share of held-out pictures whose own caption scores highest among `batch_size`."""
    hits = 0
    for b in range(batches):
        batch = scenes(f"retrieval/{b}", batch_size, held_out=True)
        ids = tokenize(tokenizer, captions_of(batch, f"retrieval/captions/{b}")).to(clip.device)
        logits = clip(
            input_ids=ids, pixel_values=to_pixels(batch, size).to(clip.device)
        ).logits_per_image  # (B, B)
        hits += (logits.argmax(1) == torch.arange(batch_size, device=clip.device)).sum().item()
    return hits / (batches * batch_size)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, default=Path("data/toon"))
    parser.add_argument("--work_dir", type=Path, default=Path("toon_build"), help="checkpoints")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    tokenizer = CLIPTokenizer.from_pretrained(args.output_dir / "sd" / "tokenizer")
    clip = build(tokenizer, args.resolution).to(device())
    diagonal = torch.arange(args.batch_size, device=device())

    def loss_of(step: int) -> torch.Tensor:
        batch = scenes(f"{args.seed}/clip/{step}", args.batch_size)
        ids = tokenize(tokenizer, captions_of(batch, f"{args.seed}/clip/captions/{step}")).to(device())
        pixels = to_pixels(batch, args.resolution).to(device())
        with torch.autocast(device().type, torch.bfloat16):
            logits = clip(input_ids=ids, pixel_values=pixels).logits_per_image.float()  # (B, B)
        return (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2

    fit(clip, loss_of, args.steps, args.lr, args.work_dir / "clip.pt", weight_decay=0.05)
    hits = retrieval(clip, tokenizer, args.resolution)
    print(f"clip: {hits:.1%} of 1,024 held-out pictures find their caption among 128")
    text_encoder_of(clip).half().save_pretrained(args.output_dir / "sd" / "text_encoder")
    clip.half().save_pretrained(args.output_dir / "clip")
    tokenizer.save_pretrained(args.output_dir / "clip")
    square = {"height": args.resolution, "width": args.resolution}
    CLIPImageProcessor(size=square, crop_size=square, image_mean=MEAN, image_std=STD).save_pretrained(
        args.output_dir / "clip"
    )
    print(f"saved {args.output_dir / 'clip'} and {args.output_dir / 'sd' / 'text_encoder'}")


if __name__ == "__main__":
    main()

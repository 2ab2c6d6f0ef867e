"""The toon world's BLIP: how well an image fits a caption, by cosine (ITC) and by a match head (ITM).

It judges generated images, so its renders are disturbed as the recogniser's are, and it knows all triples
of things, those that the UNet's training never sees among them. B images and captions, L tokens,
P projection width.
"""

import random
import string
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    BatchEncoding,
    BertTokenizer,
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipImageProcessorPil,
    BlipProcessor,
)

from scripts.toon.models.clip import MEAN, STD, captions_of
from scripts.toon.models.flags import BlipFlags
from scripts.toon.models.recogniser import disturb
from scripts.toon.models.tokenizer import corpus
from scripts.toon.models.training import begin, device, fit, generator, save, scenes, to_pixels
from scripts.toon.world.captions import attributes
from scripts.toon.world.world import Scene, twin
from utils.scores.blip_families import Blip1

WIDTH = 128
TEMPERATURE = 0.07  # where BLIP starts; it is learned there, but a score is the cosine without it
MAX_LENGTH = 64  # a caption of the world has at most 22 tokens
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def make_tokenizer() -> BertTokenizer:
    """Every word of the captions and prompts is one token; other words are spelled, a letter a token."""
    words = {word.lower() for text in corpus() for word in text.split()}
    letters = string.ascii_lowercase + string.digits
    pieces = SPECIAL + sorted(words | set(letters + string.punctuation)) + [f"##{c}" for c in letters]
    return BertTokenizer({piece: i for i, piece in enumerate(pieces)}, model_max_length=MAX_LENGTH)


def build(tokenizer: BertTokenizer, size: int) -> BlipForImageTextRetrieval:
    """Images 4 x 128, captions 3 x 128; for ITM every layer of the captions' tower looks at the image."""
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_attention_heads": 4,
    }
    text = tower | {
        "num_hidden_layers": 3,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    # transformers starts positions and the class embedding at 1e-10 unless initializer_range says otherwise.
    vision = tower | {
        "num_hidden_layers": 4,
        "image_size": size,
        "patch_size": size // 8,
        "initializer_range": 0.02,
    }
    return BlipForImageTextRetrieval(
        BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=WIDTH)
    )


def batch_of(seed: str, count: int) -> tuple[list[Scene], list[str]]:
    """`count` scenes and their captions: a quarter with triples that the UNet's training never sees, a
    quarter without, and the twin of each, which makes the negatives of both losses hard ones."""
    drawn = scenes(seed, count // 4) + scenes(f"{seed}/held-out", count // 4, held_out=True)
    batch = drawn + [twin(scene, random.Random(f"{seed}/twin/{i}")) for i, scene in enumerate(drawn)]
    return batch, captions_of(batch, f"{seed}/captions")


def fits(batch: list[Scene], captions: list[str]) -> Tensor:
    """(B, B) bool: whether caption j is true of image i. Captions leave out nothing but, at times, the
    colour."""
    facts = [attributes(scene) for scene in batch]
    colours = [fact.pop("colour") for fact in facts]
    named = [colour in text.split() for colour, text in zip(colours, captions, strict=True)]
    order = range(len(batch))
    rows = [
        [facts[i] == facts[j] and (not named[j] or colours[i] == colours[j]) for j in order] for i in order
    ]
    return torch.tensor(rows)


def retrieval_loss(
    blip: BlipForImageTextRetrieval, pixels: Tensor, tokens: BatchEncoding, true: Tensor, rng: torch.Generator
) -> Tensor:
    """BLIP's ITC + ITM (Li et al. 2022), without its momentum encoder and queue, at a fixed temperature.

    pixels: (B, 3, S, S) in [-1, 1]; tokens: ids and mask (B, L); true: (B, B) as `fits` gives it.
    ITM sees B right pairs, B images with a wrong caption and B captions with a wrong image.
    """
    patches = blip.vision_model(pixel_values=pixels).last_hidden_state  # (B, 1 + patches, D)
    images, texts = unit_features(Blip1(blip), patches, tokens)
    cosines = images @ texts.T
    # An image is not to be pushed away from another one's caption that is true of it too.
    others = true & ~torch.eye(len(true), dtype=torch.bool, device=true.device)
    logits = (cosines.float() / TEMPERATURE).masked_fill(others, -1e4)  # (B, B)
    diagonal = torch.arange(len(logits), device=logits.device)
    loss_itc = (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2

    other_texts = hard_negatives(logits.detach(), true, rng)
    other_images = hard_negatives(logits.detach().T, true.T, rng)
    tripled = {name: torch.cat([rows, rows[other_texts], rows]) for name, rows in tokens.items()}
    pairs = Blip1(blip).match_logits(
        torch.cat([patches, patches, patches[other_images]]), BatchEncoding(tripled)
    )  # (3B, 2)
    matches = (torch.arange(len(pairs), device=pairs.device) < len(logits)).long()
    return loss_itc + F.cross_entropy(pairs.float(), matches)


def hard_negatives(logits: Tensor, true: Tensor, rng: torch.Generator) -> Tensor:
    """(B,) for each row a column that is not true of it, drawn with the probabilities of the ITC softmax."""
    weights = (logits.softmax(1) + 1e-4).masked_fill(true, 0).cpu()
    return torch.multinomial(weights, 1, generator=rng).squeeze(1).to(logits.device)


def unit_features(parts: Blip1, patches: Tensor, tokens: BatchEncoding) -> tuple[Tensor, Tensor]:
    """(images (B, P), captions (B, P)), unit vectors."""
    images, texts = parts.image_features(patches).squeeze(1), parts.text_features(tokens)
    return F.normalize(images, dim=-1), F.normalize(texts, dim=-1)


def encode(tokenizer: BertTokenizer, captions: list[str]) -> BatchEncoding:
    """input_ids and attention_mask (B, L)."""
    return tokenizer(captions, padding=True, return_token_type_ids=False, return_tensors="pt").to(device())


@torch.no_grad()
def retrieval(
    blip: BlipForImageTextRetrieval,
    tokenizer: BertTokenizer,
    size: int,
    batches: int = 8,
    batch_size: int = 128,
) -> float:
    """Share of held-out images whose own caption has the highest cosine among `batch_size`."""
    hits = 0
    for b in range(batches):
        batch = scenes(f"retrieval/{b}", batch_size, held_out=True)
        patches = blip.vision_model(pixel_values=to_pixels(batch, size).to(blip.device)).last_hidden_state
        tokens = encode(tokenizer, captions_of(batch, f"retrieval/captions/{b}"))
        images, texts = unit_features(Blip1(blip), patches, tokens)
        best = (images @ texts.T).argmax(1).cpu()  # (B,)
        hits += (best == torch.arange(batch_size)).sum().item()
    return hits / (batches * batch_size)


@torch.no_grad()
def one_thing_wrong(
    blip: BlipForImageTextRetrieval, tokenizer: BertTokenizer, size: int, count: int = 1024
) -> tuple[float, float]:
    """(share of unseen images whose cosine prefers their caption to one with one thing wrong, share of
    these 2 x `count` pairs that the match head decides rightly)."""
    preferred, decided = [], []
    for start in range(0, count, 64):
        batch, captions = batch_of(f"one-thing-wrong/{start}", 128)
        # Of two twins that differ in colour a caption may fit both: those are left out.
        clear = ~fits(batch, captions)[torch.arange(64), torch.arange(64, 128)]
        patches = blip.vision_model(
            pixel_values=to_pixels(batch[:64], size).to(blip.device)
        ).last_hidden_state
        tokens = encode(tokenizer, captions)
        images, texts = unit_features(Blip1(blip), patches, tokens)
        cosines = (images.repeat(2, 1) * texts).sum(1)  # (128,)
        logits = Blip1(blip).match_logits(patches.repeat(2, 1, 1), tokens)
        says = logits.argmax(1).cpu()
        preferred.append((cosines[:64] > cosines[64:]).cpu()[clear])
        decided += [says[:64][clear] == 1, says[64:][clear] == 0]
    return torch.cat(preferred).float().mean().item(), torch.cat(decided).float().mean().item()


def loss_at(
    blip: BlipForImageTextRetrieval, tokenizer: BertTokenizer, size: int, batch_size: int, seed: int
) -> Callable[[int], Tensor]:
    """The loss of a step, a function of (seed, step) alone."""

    def loss_of(step: int) -> Tensor:
        data = f"{seed}/blip/{step}"
        batch, captions = batch_of(data, batch_size)
        pixels = disturb(to_pixels(batch, size), generator(f"{data}/disturb")).to(device())
        true, tokens = fits(batch, captions).to(device()), encode(tokenizer, captions)
        with torch.autocast(device().type, torch.bfloat16):
            return retrieval_loss(blip, pixels, tokens, true, generator(f"{data}/negatives"))

    return loss_of


def train(config: BlipFlags) -> None:
    """Train the BLIP and save it with its processor."""
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

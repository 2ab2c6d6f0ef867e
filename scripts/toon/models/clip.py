"""The toon world's CLIPModel: its two towers, its losses, and how well images and captions meet.

B images and captions, L tokens, D text width.
"""

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

from scripts.toon.models.flags import ClipFlags
from scripts.toon.models.recogniser import split, targets
from scripts.toon.models.training import begin, check_present, device, fit, save, scenes, to_pixels
from scripts.toon.world.captions import ATTRIBUTES, PARTS, caption, describe, part_facts, part_words
from scripts.toon.world.world import ANIMALS, Scene, is_held_out, twin
from utils.bases.text import tokenize

WIDTH = 128
MEAN = STD = [0.5, 0.5, 0.5]
NAME_PARTS = 0.5  # of the captions that CLIP and the UNet learn from
VALUES = ATTRIBUTES | PARTS  # what the reading loss reads


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


def captions_of(batch: list[Scene], seed: str, parts: float = 0.0) -> list[str]:
    return [caption(scene, random.Random(f"{seed}/{i}"), parts) for i, scene in enumerate(batch)]


def with_twins(batch: list[Scene], seed: str) -> list[Scene]:
    """(2B,) every scene, and after all of them its twin, with no triple that training never sees.

    A batch drawn at random is separated by places and colours alone; twins make every word count.
    """
    rng = random.Random(seed)

    def seen_twin(scene: Scene) -> Scene:
        while is_held_out(other := twin(scene, rng)):
            pass
        return other

    return batch + [seen_twin(scene) for scene in batch]


def facts_of(batch: list[Scene]) -> dict[str, Tensor]:
    """For each of VALUES (B,) the index of its value, -100 where an image has none."""
    parts = [part_facts(scene.subject) for scene in batch]
    return targets(batch) | {
        name: torch.tensor([values.index(facts[name]) if name in facts else -100 for facts in parts])
        for name, values in PARTS.items()
    }


def stated(batch: list[Scene], captions: list[str]) -> dict[str, Tensor]:
    """`facts_of` without the colours and parts that a caption leaves out."""
    facts = facts_of(batch)
    for i, (scene, text) in enumerate(zip(batch, captions, strict=True)):
        if f"{scene.subject.colour} {scene.subject.kind}" not in text:
            facts["colour"][i] = -100
        words = part_words(scene.subject)
        for name in PARTS:
            if name not in words or words[name] not in text:
                facts[name][i] = -100
    return facts


def reading_loss(readers: nn.Linear, embeds: Tensor, facts: dict[str, Tensor]) -> Tensor:
    """Attributes read linearly off unit features (B, D), images' and captions' with the same weights.

    Web-scale CLIP needs none of it. With 10^5 images the contrast alone settles for places and colours, and
    the words "cat" and "pig" stay the same to the text encoder.
    """
    logits = split(readers(WIDTH**0.5 * embeds.float()), VALUES)
    return sum(
        F.cross_entropy(row, facts[name].to(row.device), reduction="sum") / len(row)
        for name, row in logits.items()
    )


def text_encoder_of(clip: CLIPModel) -> CLIPTextModel:
    """The text tower as the CLIPTextModel that a StableDiffusionPipeline holds."""
    encoder = CLIPTextModel(clip.config.text_config)
    encoder.load_state_dict(clip.text_model.state_dict())
    return encoder.eval()


@torch.no_grad()
def retrieval(
    clip: CLIPModel, tokenizer: CLIPTokenizer, size: int, batches: int = 8, batch_size: int = 128
) -> float:
    """Share of held-out images whose own caption scores highest among `batch_size`."""
    hits = 0
    for b in range(batches):
        batch = scenes(f"retrieval/{b}", batch_size, held_out=True)
        ids = tokenize(tokenizer, captions_of(batch, f"retrieval/captions/{b}")).to(clip.device)
        logits = clip(
            input_ids=ids, pixel_values=to_pixels(batch, size).to(clip.device)
        ).logits_per_image  # (B, B)
        hits += (logits.argmax(1) == torch.arange(batch_size, device=clip.device)).sum().item()
    return hits / (batches * batch_size)


@torch.no_grad()
def animals_named(clip: CLIPModel, tokenizer: CLIPTokenizer, size: int, count: int = 512) -> float:
    """Share of held-out images of animals that prefer their caption to those with another animal's name."""
    drawn = [
        scene for scene in scenes("animals-named", count, held_out=True) if scene.subject.kind in ANIMALS
    ]
    hits = 0
    for start in range(0, len(drawn), 64):
        batch = drawn[start : start + 64]
        texts = [f"a photo of a {describe(scene, kind)}" for scene in batch for kind in ANIMALS]
        out = clip(
            input_ids=tokenize(tokenizer, texts).to(clip.device),
            pixel_values=to_pixels(batch, size).to(clip.device),
        )
        scores = torch.einsum("bd,bkd->bk", out.image_embeds, out.text_embeds.unflatten(0, (len(batch), -1)))
        right = torch.tensor([ANIMALS.index(scene.subject.kind) for scene in batch], device=clip.device)
        hits += (scores.argmax(1) == right).sum().item()
    return hits / len(drawn)


def loss_at(
    clip: CLIPModel, readers: nn.Linear, tokenizer: CLIPTokenizer, size: int, batch_size: int, seed: int
) -> Callable[[int], Tensor]:
    """The loss of a step, a function of (seed, step) alone: contrast, and attributes read off both sides."""
    data, diagonal = f"{seed}/clip", torch.arange(batch_size, device=device())

    def loss_of(step: int) -> Tensor:
        batch = with_twins(scenes(f"{data}/{step}", batch_size // 2), f"{data}/twins/{step}")
        captions = captions_of(batch, f"{data}/captions/{step}", NAME_PARTS)
        ids = tokenize(tokenizer, captions).to(device())
        pixels = to_pixels(batch, size).to(device())
        with torch.autocast(device().type, torch.bfloat16, enabled=device().type == "cuda"):
            out = clip(input_ids=ids, pixel_values=pixels)
        logits = out.logits_per_image.float()  # (B, B)
        loss = (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2
        return (
            loss
            + reading_loss(readers, out.image_embeds, facts_of(batch))
            + reading_loss(readers, out.text_embeds, stated(batch, captions))
        )

    return loss_of


def train(config: ClipFlags) -> None:
    """Train the CLIPModel contrastively and save it; its text tower becomes the pipeline's text encoder.

    Raises UserError if there is no tokenizer yet.
    """
    folder, size = config.output_dir, config.resolution
    check_present(folder / "sd" / "tokenizer", "python -m scripts.toon.build tokenizer")
    begin(config, "clip")
    torch.manual_seed(config.seed)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "sd" / "tokenizer")
    clip = build(tokenizer, size)
    if config.init_from:
        clip.load_state_dict(CLIPModel.from_pretrained(config.init_from, dtype=torch.float32).state_dict())
    clip.to(device())
    readers = nn.Linear(WIDTH, sum(map(len, VALUES.values()))).to(device())
    loss_of = loss_at(clip, readers, tokenizer, size, config.batch_size, config.seed)
    trained = nn.ModuleList([clip, readers])
    fit(trained, loss_of, config.steps, config.lr, config.work_dir / "clip.pt", weight_decay=0.05)
    hits = retrieval(clip, tokenizer, size)
    print(f"clip: {hits:.1%} of 1,024 held-out images find their caption among 128")
    named = animals_named(clip, tokenizer, size)
    print(f"clip: {named:.1%} of held-out animals prefer their name to the four others'")
    save(text_encoder_of(clip), folder / "sd" / "text_encoder")
    save(clip, folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    square = {"height": size, "width": size}
    CLIPImageProcessor(size=square, crop_size=square, image_mean=MEAN, image_std=STD).save_pretrained(
        folder / "clip"
    )
    print(f"saved {folder / 'clip'} and {folder / 'sd' / 'text_encoder'}")

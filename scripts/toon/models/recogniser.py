"""The judge of toon images: a ResNet, trained on renders alone, that reads attributes off an image.

It never sees the models it judges. B images.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification

from scripts.toon.models.flags import RecogniserFlags
from scripts.toon.models.training import begin, device, fit, generator, save, scenes, to_pixels
from scripts.toon.world.captions import ATTRIBUTES, attributes
from scripts.toon.world.world import Scene
from utils.bases.devices import without_progress_bars
from utils.bases.pretrained import readable
from utils.common.images import to_pixels as image_to_pixels

SIDE = 128  # images are resized to this, so that the stem's fourfold reduction keeps small things
FOLDER = Path("data/toon/recogniser")
Values = dict[str, tuple[str, ...]]  # attribute -> what it can be


def build() -> ResNetForImageClassification:
    labels = labels_of(ATTRIBUTES)
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=32,
            hidden_sizes=[32, 64, 128, 256],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
        )
    )


def labels_of(values: Values) -> list[str]:
    """What each output of a reader of these says: "class: dog", …"""
    return [f"{attribute}: {value}" for attribute, its in values.items() for value in its]


def split(logits: Tensor, values: Values = ATTRIBUTES) -> dict[str, Tensor]:
    """(B, all values) -> for each attribute (B, its values)."""
    return dict(zip(values, logits.split([*map(len, values.values())], 1), strict=True))


def prepare(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> (B, 3, SIDE, SIDE)."""
    return F.interpolate(pixels, size=(SIDE, SIDE), mode="bilinear", antialias=True)


def targets(batch: list[Scene]) -> dict[str, Tensor]:
    """For each attribute (B,) the index of its value, -100 where it has none (a colour without a name)."""
    facts = [attributes(scene) for scene in batch]
    return {
        name: torch.tensor([values.index(f[name]) if f[name] is not None else -100 for f in facts])
        for name, values in ATTRIBUTES.items()
    }


def disturb(pixels: Tensor, rng: torch.Generator) -> Tensor:
    """Blur, noise and colour shifts, as generated images have; each image gets its own strengths."""
    b, size = pixels.shape[0], pixels.shape[-1]
    blur = torch.rand(b, 1, 1, 1, generator=rng)
    soft = F.interpolate(F.avg_pool2d(pixels, 2), size=(size, size), mode="bilinear")
    pixels = pixels + blur * (soft - pixels)
    pixels = pixels + 0.12 * torch.rand(b, 1, 1, 1, generator=rng) * torch.randn(pixels.shape, generator=rng)
    gain = 1 + 0.16 * (torch.rand(b, 1, 1, 1, generator=rng) - 0.5)
    return (pixels * gain + 0.08 * (torch.rand(b, 3, 1, 1, generator=rng) - 0.5)).clamp(-1, 1)


class Recogniser:
    """`Recogniser().read(images)` -> one dictionary of attribute values per PIL image."""

    def __init__(self, folder: Path = FOLDER, device: str = "cpu"):
        with without_progress_bars(), readable("recogniser", folder):
            model = ResNetForImageClassification.from_pretrained(folder, dtype=torch.float32)
        self.model = model.to(device).eval()

    @torch.no_grad()
    def read(self, images: list[Image.Image], batch_size: int = 64) -> list[dict[str, str]]:
        facts: list[dict[str, str]] = []
        for start in range(0, len(images), batch_size):
            batch = [
                p.convert("RGB").resize((SIDE, SIDE), Image.BILINEAR)
                for p in images[start : start + batch_size]
            ]
            x = torch.stack([image_to_pixels(image) for image in batch])
            best = {
                name: part.argmax(1)
                for name, part in split(self.model(x.to(self.model.device)).logits).items()
            }
            facts += [
                {name: ATTRIBUTES[name][best[name][i]] for name in ATTRIBUTES} for i in range(len(batch))
            ]
        return facts


@torch.no_grad()
def accuracy(model: ResNetForImageClassification, size: int, count: int = 2048) -> dict[str, float]:
    """Per attribute, on renders that training has not seen, half of them with held-out triples."""
    hits = {name: [] for name in ATTRIBUTES}
    for i in range(0, count, 64):
        batch = scenes(f"recogniser-test/{i}", 64, held_out=i % 128 == 0)
        logits = split(model(prepare(to_pixels(batch, size).to(model.device))).logits)
        for name, wanted in targets(batch).items():
            hits[name].append((logits[name].argmax(1).cpu() == wanted)[wanted >= 0].float())
    return {name: torch.cat(h).mean().item() for name, h in hits.items()}


def loss_at(
    model: ResNetForImageClassification, size: int, batch_size: int, seed: int
) -> Callable[[int], Tensor]:
    """The loss of a step, a function of (seed, step) alone.

    Half of the scenes hold triples that the UNet's training never sees: the judge must know them all.
    """
    data = f"{seed}/recogniser"

    def loss_of(step: int) -> Tensor:
        batch = scenes(f"{data}/{step}", batch_size // 2)
        batch += scenes(f"{data}/held-out/{step}", batch_size // 2, held_out=True)
        pixels = disturb(to_pixels(batch, size), generator(f"{data}/disturb/{step}"))
        logits = split(model(prepare(pixels.to(device()))).logits)
        return sum(F.cross_entropy(logits[k], wanted.to(device())) for k, wanted in targets(batch).items())

    return loss_of


def train(config: RecogniserFlags) -> None:
    """Train the recogniser on renders alone, save it, and print its accuracy."""
    begin(config, "recogniser")
    torch.manual_seed(config.seed)
    model = build()
    if config.init_from:
        start = ResNetForImageClassification.from_pretrained(config.init_from, dtype=torch.float32)
        model.load_state_dict(start.state_dict())
    model.to(device())
    loss_of = loss_at(model, config.resolution, config.batch_size, config.seed)
    fit(model, loss_of, config.steps, config.lr, config.work_dir / "recogniser.pt")
    for name, share in accuracy(model, config.resolution).items():
        print(f"recogniser: {name} {share:.2%}")
    save(model, config.output_dir)
    print(f"saved {config.output_dir}")
